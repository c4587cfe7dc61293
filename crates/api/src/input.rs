//! A request as it came, and reading members out of it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{
    catalogue,
    constraint::{Constraints, TextRule},
    error::ServiceError,
    microvms::MAXIMUM_DURATION_SECONDS,
    page::{PAGE_ITEMS_MAX, PageRequest},
    word::Word,
};

/// Largest body that is read, in bytes. The largest request the model allows has 100 variables of 4096 characters.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// The parts of a request: names captured from the path, the query, and the members of the JSON body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Input {
    path: Map<String, Value>,
    query: Map<String, Value>,
    body: Map<String, Value>,
    longest_s: Option<u32>,
}

/// A request that can be read from its parts.
pub trait FromInput: Sized {
    /// Reads it, or names everything that is wrong with its shape.
    fn from_input(input: &Input) -> Result<Self, ServiceError>;
}

impl Input {
    /// Takes a request apart. A body that is empty is one without members.
    pub fn new(
        path: impl IntoIterator<Item = (String, String)>,
        query: impl IntoIterator<Item = (String, String)>,
        body: &[u8],
    ) -> Result<Self, ServiceError> {
        // A parameter given several times is a list.
        let texts = |pairs: &mut dyn Iterator<Item = (String, String)>| -> Map<String, Value> {
            let mut map = Map::new();
            for (name, text) in pairs {
                match map.entry(name).or_insert(Value::Null) {
                    Value::Array(texts) => texts.push(Value::String(text)),
                    unset @ Value::Null => *unset = Value::String(text),
                    first => *first = Value::Array(vec![first.take(), Value::String(text)]),
                }
            }
            map
        };
        let body = if body.iter().all(u8::is_ascii_whitespace) {
            Map::new()
        } else {
            match serde_json::from_slice(body) {
                Ok(Value::Object(members)) => members,
                Ok(_) | Err(_) => return Err(catalogue::unreadable_input()),
            }
        };
        let (path, query) = (texts(&mut path.into_iter()), texts(&mut query.into_iter()));
        Ok(Self { path, query, body, longest_s: None })
    }

    /// Lets microVMs live for so many seconds, where a configuration goes beyond the service.
    #[must_use]
    pub fn allowing(self, longest_s: u32) -> Self {
        Self { longest_s: Some(longest_s), ..self }
    }

    /// Longest `maximumDurationInSeconds`.
    pub(crate) fn longest_s(&self) -> u32 {
        self.longest_s.unwrap_or(MAXIMUM_DURATION_SECONDS)
    }

    /// A part of the path.
    #[must_use]
    pub fn path(&self, name: &'static str) -> Field<'_> {
        Field { value: self.path.get(name), path: told(name) }
    }

    /// A parameter of the query.
    #[must_use]
    pub fn query(&self, name: &'static str) -> Field<'_> {
        Field { value: self.query.get(name), path: told(name) }
    }

    /// A member of the body.
    #[must_use]
    pub fn body(&self, name: &'static str) -> Field<'_> {
        Field::of(&self.body, "", name)
    }

    /// The parameters that every list takes.
    pub fn page(&self, constraints: &mut Constraints) -> PageRequest {
        PageRequest {
            max_results: self
                .query("maxResults")
                .number_text(constraints, 1, PAGE_ITEMS_MAX.cast_signed())
                .map(i32::cast_unsigned),
            next_token: self.query("nextToken").text(constraints, &TextRule::any()),
        }
    }
}

/// A member that may be there. A JSON null is as good as absent.
#[derive(Debug, Clone)]
pub struct Field<'a> {
    value: Option<&'a Value>,
    path: String,
}

/// A structure inside a request.
#[derive(Debug, Clone)]
pub struct Members<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Members<'a> {
    /// A member of it.
    #[must_use]
    pub fn field(&self, name: &str) -> Field<'a> {
        Field::of(self.map, &self.path, name)
    }

    /// The one member a union has set, of those it can have; unknown ones are ignored as the service ignores them.
    fn only<'n>(&self, constraints: &mut Constraints, names: &[&'n str]) -> Option<(&'n str, Field<'a>)> {
        let mut set = names.iter().map(|name| (*name, self.field(name))).filter(|(_, field)| field.value.is_some());
        let first = set.next();
        if first.is_none() || set.next().is_some() {
            constraints.wrong_type(format!("Exactly one member of the union at '{}' must be set", self.path));
            return None;
        }
        first
    }
}

impl<'a> Field<'a> {
    fn of(map: &'a Map<String, Value>, parent: &str, name: &str) -> Self {
        let path = if parent.is_empty() { told(name) } else { format!("{parent}.{}", told(name)) };
        Self { value: map.get(name).filter(|value| !value.is_null()), path }
    }

    /// Notes it if it is not there.
    #[must_use]
    pub fn required(self, constraints: &mut Constraints) -> Self {
        if self.value.is_none() {
            constraints.missing(&self.path);
        }
        self
    }

    fn typed<T>(
        &self,
        constraints: &mut Constraints,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.value?;
        let read = read(value);
        if read.is_none() {
            constraints.wrong_type(match value {
                Value::Object(_) | Value::Array(_) => "Start of structure or map found where not expected.".to_owned(),
                Value::Null => "NULL_VALUE can not be converted to ".to_owned() + wanted,
                Value::Bool(true) => "TRUE_VALUE can not be converted to ".to_owned() + wanted,
                Value::Bool(false) => "FALSE_VALUE can not be converted to ".to_owned() + wanted,
                Value::Number(_) => "NUMBER_VALUE can not be converted to ".to_owned() + wanted,
                Value::String(_) => "STRING_VALUE can not be converted to ".to_owned() + wanted,
            });
        }
        read
    }

    /// A text.
    pub fn text(self, constraints: &mut Constraints, rule: &TextRule) -> Option<String> {
        let text = self.typed(constraints, "String", Value::as_str)?;
        constraints.text(&self.path, text, rule);
        Some(text.to_owned())
    }

    /// A whole number between two, both included.
    pub fn number(self, constraints: &mut Constraints, min: i32, max: i32) -> Option<i32> {
        let number =
            self.typed(constraints, "Integer", |value| value.as_i64().and_then(|number| i32::try_from(number).ok()))?;
        constraints.number(&self.path, number, min, max);
        Some(number)
    }

    /// A whole number in the query.
    pub fn number_text(self, constraints: &mut Constraints, min: i32, max: i32) -> Option<i32> {
        let Ok(number) = self.value?.as_str().unwrap_or_default().parse() else {
            constraints.unreadable();
            return None;
        };
        constraints.number(&self.path, number, min, max);
        Some(number)
    }

    /// A truth value.
    pub fn boolean(self, constraints: &mut Constraints) -> Option<bool> {
        self.typed(constraints, "Boolean", Value::as_bool)
    }

    /// One of a set of words.
    pub fn word<W: Word>(self, constraints: &mut Constraints) -> Option<W> {
        let text = self.typed(constraints, "String", Value::as_str)?;
        let word = W::from_word(text);
        if word.is_none() {
            let all: Vec<_> = W::ALL.iter().map(|word| word.as_str()).collect();
            let demand = format!("Member must satisfy enum value set: [{}]", all.join(", "));
            constraints.violated(Some(text), &self.path, &demand);
        }
        word
    }

    /// A structure.
    pub fn members(self, constraints: &mut Constraints) -> Option<Members<'a>> {
        let map = match self.value? {
            Value::Object(map) => map,
            _ => {
                constraints.wrong_type("Expected null");
                return None;
            }
        };
        Some(Members { map, path: self.path })
    }

    /// A union: the member that is set.
    pub fn union<'n>(self, constraints: &mut Constraints, names: &[&'n str]) -> Option<(&'n str, Field<'a>)> {
        self.members(constraints)?.only(constraints, names)
    }

    /// A list of so many members. A null among them is refused as the service refuses it.
    pub fn list<T>(
        self,
        constraints: &mut Constraints,
        min: usize,
        max: usize,
        mut read: impl FnMut(&mut Constraints, Field<'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::Array(items) = self.value? else {
            constraints.wrong_type("Expected list or null");
            return None;
        };
        let shown = shown(items);
        constraints.members(&self.path, Some(&shown), items.len(), min, max);
        let mut read_items = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}.{}.member", self.path, index + 1);
            let field = Field { value: Some(item).filter(|item| !item.is_null()), path }.required(constraints);
            read_items.extend(read(constraints, field));
        }
        Some(read_items)
    }

    /// A parameter of the query that may be given several times.
    pub fn repeated(self, constraints: &mut Constraints, rule: &TextRule) -> Option<Vec<String>> {
        match self.value? {
            Value::Array(_) => self.list(constraints, 0, usize::MAX, |c, field| field.text(c, rule)),
            one => {
                let field = Field { value: Some(one), path: format!("{}.1.member", self.path) };
                Some(field.text(constraints, rule).into_iter().collect())
            }
        }
    }

    /// A map of texts to texts.
    pub fn texts(
        self,
        constraints: &mut Constraints,
        max: usize,
        key: &TextRule,
        value: &TextRule,
    ) -> Option<BTreeMap<String, String>> {
        let Value::Object(map) = self.value? else {
            constraints.wrong_type("Expected map or null");
            return None;
        };
        let mut texts = BTreeMap::new();
        for (name, item) in map {
            let item = Field { value: Some(item), path: String::new() };
            texts.insert(name.clone(), item.typed(constraints, "String", Value::as_str)?.to_owned());
        }
        constraints.members(&self.path, None, texts.len(), 0, max);
        constraints.map(&self.path, texts.iter().map(|(name, text)| (name.as_str(), text.as_str())), key, value);
        Some(texts)
    }
}

/// A member's name as the service's messages write it: with a small first letter, also where the wire has a capital one.
fn told(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
}

/// A list as the service's messages show it.
fn shown(items: &[Value]) -> String {
    let parts: Vec<_> = items
        .iter()
        .map(|item| match item {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
        .collect();
    format!("[{}]", parts.join(", "))
}
