//! The public service model, and what its constraints say of a value: every way to break one at its edge, with the
//! sentence that the service answers.

use anyhow::{Context, ensure};
use regex::Regex;
use serde_json::{Map, Value, json};

use crate::Aws;

/// Members that no valid input has, because they are refused; their shape is checked before that, from these values.
const NOT_TAKEN: &[(&str, &str)] = &[("kmsKeyIdentifier", "alias/a-key")];

/// Most characters of a value in a sentence; the rest of a longer one is left out here.
const SHOWN_CHARS_MAX: usize = 4096;

/// One service's model.
pub struct Model {
    /// Name of the service, as clients of boto3 are made with.
    pub service: &'static str,
    document: Value,
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The service.
    pub service: &'static str,
    /// Its name.
    pub name: String,
    /// HTTP method.
    pub method: String,
    /// Path with `{names}`.
    pub path: String,
    input: Option<String>,
}

/// A value that breaks one constraint of an operation's input.
#[derive(Debug, Clone)]
pub struct Breakage {
    /// Where and how, for people.
    pub what: String,
    /// The parameters, valid but for that.
    pub parameters: Value,
    /// What must be said of it; the value is left out of a composite one's sentence, which only has to end so.
    pub sentence: Sentence,
}

/// What must be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sentence {
    /// `1 validation error detected: ` and this, or as many as there are.
    Exactly(Vec<String>),
    /// One violation whose text ends so.
    Ending(String),
    /// `SerializationException`.
    Unreadable,
}

fn name_of(location: &Value, name: &str) -> String {
    location["locationName"].as_str().unwrap_or(name).to_owned()
}

/// `add` to the boto3 name of an operation or as the aws CLI's: words apart.
#[must_use]
pub fn words_apart(name: &str, between: char) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push(between);
        }
        text.extend(letter.to_lowercase());
    }
    text
}

impl Model {
    /// Asks botocore for it.
    pub fn load(aws: &Aws, service: &'static str) -> anyhow::Result<Self> {
        let document = aws.model(service)?;
        ensure!(document["operations"].is_object(), "botocore has no model of {service}");
        Ok(Self { service, document })
    }

    /// Every operation.
    #[must_use]
    pub fn operations(&self) -> Vec<Operation> {
        let operations = self.document["operations"].as_object().into_iter().flatten();
        operations
            .map(|(name, operation)| Operation {
                service: self.service,
                name: name.clone(),
                method: operation["http"]["method"].as_str().unwrap_or_default().to_owned(),
                path: operation["http"]["requestUri"].as_str().unwrap_or_default().to_owned(),
                input: operation["input"]["shape"].as_str().map(str::to_owned),
            })
            .collect()
    }

    fn shape(&self, name: &str) -> &Value {
        &self.document["shapes"][name]
    }

    fn members<'m>(&'m self, shape: &'m Value) -> impl Iterator<Item = (&'m String, &'m Value)> {
        shape["members"].as_object().into_iter().flatten()
    }

    fn is_required(shape: &Value, name: &str) -> bool {
        shape["required"].as_array().is_some_and(|names| names.iter().any(|required| required == name))
    }

    /// The request of these parameters: target with the query, and the body.
    pub fn request(&self, operation: &Operation, parameters: &Value) -> anyhow::Result<(String, Option<String>)> {
        let mut target = operation.path.clone();
        let (mut query, mut body) = (Vec::new(), Map::new());
        let input = operation.input.as_ref().map_or(&Value::Null, |name| self.shape(name));
        for (name, member) in self.members(input) {
            let value = &parameters[name];
            if value.is_null() {
                continue;
            }
            let on_the_wire = name_of(member, name);
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            match member["location"].as_str() {
                Some("uri") => target = target.replace(&format!("{{{on_the_wire}}}"), &encoded(&text(value))),
                Some("querystring") => {
                    let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                    query.extend(values.iter().map(|value| format!("{on_the_wire}={}", encoded(&text(value)))));
                }
                Some(other) => anyhow::bail!("{name} is in the {other}, which is not foreseen"),
                None => {
                    body.insert(on_the_wire, value.clone());
                }
            }
        }
        ensure!(!target.contains('{'), "{target} of {} lacks a parameter: {parameters}", operation.name);
        if !query.is_empty() {
            target = format!("{target}?{}", query.join("&"));
        }
        let has_body = !["GET", "DELETE"].contains(&operation.method.as_str());
        Ok((target, has_body.then(|| Value::Object(body).to_string())))
    }

    /// A path of the operation that names nothing there is.
    #[must_use]
    pub fn nowhere(&self, operation: &Operation) -> String {
        let parts = operation.path.split('/').map(|part| if part.starts_with('{') { "nothing" } else { part });
        parts.collect::<Vec<_>>().join("/")
    }

    /// Every constraint of the operation's input broken at its edge, in parameters that are valid otherwise.
    pub fn breakages(&self, operation: &Operation, valid: &Value) -> anyhow::Result<Vec<Breakage>> {
        let Some(input) = &operation.input else { return Ok(Vec::new()) };
        let mut walk = Walk { model: self, valid, found: Vec::new() };
        walk.structure(self.shape(input), valid, "", &[])
            .with_context(|| format!("the full input of {}", operation.name))?;
        Ok(walk.found)
    }
}

fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Where a value is in the parameters.
#[derive(Debug, Clone)]
enum Step {
    Member(String),
    Item(usize),
}

struct Walk<'m> {
    model: &'m Model,
    valid: &'m Value,
    found: Vec<Breakage>,
}

/// One member under examination.
struct Place<'a> {
    /// As messages name it.
    shown: &'a str,
    steps: &'a [Step],
    location: Option<&'a str>,
    sensitive: bool,
}

impl Walk<'_> {
    fn broken(&self, steps: &[Step], value: Option<Value>) -> Value {
        let mut parameters = self.valid.clone();
        let mut at = &mut parameters;
        for (index, step) in steps.iter().enumerate() {
            let last = index + 1 == steps.len();
            if let (true, None, Step::Member(name)) = (last, &value, step) {
                if let Some(map) = at.as_object_mut() {
                    map.remove(name);
                }
                return parameters;
            }
            at = match step {
                Step::Member(name) => &mut at[name.as_str()],
                Step::Item(index) => &mut at[*index],
            };
        }
        *at = value.unwrap_or_default();
        parameters
    }

    fn add(&mut self, place: &Place, what: &str, value: Option<Value>, sentence: Sentence) {
        self.found.push(Breakage {
            what: format!("{} {what}", place.shown),
            parameters: self.broken(place.steps, value),
            sentence,
        });
    }

    fn structure(&mut self, shape: &Value, valid: &Value, shown: &str, steps: &[Step]) -> anyhow::Result<()> {
        let members: Vec<_> = self.model.members(shape).map(|(name, member)| (name.clone(), member.clone())).collect();
        for (name, member) in members {
            let target = self.model.shape(member["shape"].as_str().unwrap_or_default()).clone();
            let mut below = steps.to_vec();
            below.push(Step::Member(name.clone()));
            // Messages name members as the model's code does, whatever they are called on the wire.
            let mut letters = name.chars();
            let lower: String = letters.next().into_iter().flat_map(char::to_lowercase).chain(letters).collect();
            let shown = if shown.is_empty() { lower } else { format!("{shown}.{lower}") };
            let sensitive = target["sensitive"] == true || member["sensitive"] == true;
            let place = Place { shown: &shown, steps: &below, location: member["location"].as_str(), sensitive };
            if Model::is_required(shape, &name) && place.location.is_none() {
                let sentence = format!("Value null at '{shown}' failed to satisfy constraint: Member must not be null");
                self.add(&place, "left out", None, Sentence::Exactly(vec![sentence]));
            }
            let refused = NOT_TAKEN.iter().find(|(known, _)| *known == name).map(|(_, value)| json!(value));
            let value = refused.as_ref().unwrap_or(&valid[&name]);
            if value.is_null() {
                // One variant of a union excludes the others, and a first page has no token.
                let page = ["nextToken", "Marker"].contains(&name.as_str());
                ensure!(page || shape["union"] == true, "{shown} is not in it");
                continue;
            }
            self.value(&target, value, &place)?;
        }
        Ok(())
    }

    fn value(&mut self, shape: &Value, valid: &Value, place: &Place) -> anyhow::Result<()> {
        match shape["type"].as_str().unwrap_or_default() {
            "string" => self.text(shape, valid, place),
            "integer" | "long" => self.number(shape, place),
            "boolean" => self.add_unreadable(place, json!("true")),
            "list" => self.list(shape, valid, place)?,
            "map" => self.map(shape, place),
            "structure" => {
                self.add_unreadable(place, json!("text"));
                self.structure(shape, valid, place.shown, place.steps)?;
            }
            other => anyhow::bail!("{} is a {other}, which is not foreseen", place.shown),
        }
        Ok(())
    }

    /// Of the wrong JSON type; in a path or a query everything is text.
    fn add_unreadable(&mut self, place: &Place, value: Value) {
        if place.location.is_none() {
            self.add(place, "of another type", Some(value), Sentence::Unreadable);
        }
    }

    fn text(&mut self, shape: &Value, valid: &Value, place: &Place) {
        self.add_unreadable(place, json!(7));
        let rule = Rule::of(shape);
        let valid = valid.as_str().unwrap_or_default();
        let mut candidates = Vec::new();
        if let Some(max) = rule.max {
            let more = "a".repeat((max + 1).saturating_sub(valid.len()));
            candidates.push(("too long", format!("{valid}{more}")));
        }
        if let Some(min) = rule.min.filter(|min| *min > 0) {
            candidates.push(("too short", "a".repeat(min - 1)));
        }
        if !rule.words.is_empty() {
            candidates.push(("no such word", "NO_SUCH_WORD".to_owned()));
        }
        if rule.pattern.is_some() {
            let near = [" ", "!", ":", "\u{1}"].map(|end| format!("{valid}{end}"));
            candidates
                .extend(near.into_iter().find(|text| rule.broken_by(text).len() == 1).map(|it| ("ill-formed", it)));
        }
        for (what, text) in candidates {
            // An empty part of a path is another path.
            if place.location == Some("uri") && text.is_empty() {
                continue;
            }
            let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
            let value = if place.sensitive { String::new() } else { format!("'{shown}' ") };
            let sentences = rule.broken_by(&text).into_iter();
            let sentences: Vec<_> = sentences
                .map(|demand| format!("Value {value}at '{}' failed to satisfy constraint: {demand}", place.shown))
                .collect();
            self.add(place, what, Some(json!(text)), Sentence::Exactly(sentences));
        }
    }

    fn number(&mut self, shape: &Value, place: &Place) {
        self.add_unreadable(place, json!("7"));
        let edges = [
            (shape["max"].as_i64(), 1, "too large", "less than or equal to"),
            (shape["min"].as_i64(), -1, "too small", "greater than or equal to"),
        ];
        for (edge, beyond, what, relation) in edges {
            let Some(edge) = edge else { continue };
            let value = edge + beyond;
            let sentence = format!(
                "Value '{value}' at '{}' failed to satisfy constraint: Member must have value {relation} {edge}",
                place.shown
            );
            self.add(place, what, Some(json!(value)), Sentence::Exactly(vec![sentence]));
        }
    }

    fn list(&mut self, shape: &Value, valid: &Value, place: &Place) -> anyhow::Result<()> {
        self.add_unreadable(place, json!({"a": 1}));
        let first = valid[0].clone();
        ensure!(!first.is_null(), "{} has no item in it", place.shown);
        let ending = |relation: &str, edge: u64| {
            Sentence::Ending(format!(
                "at '{}' failed to satisfy constraint: Member must have length {relation} than or equal to {edge}",
                place.shown
            ))
        };
        if let Some(max) = shape["max"].as_u64() {
            let items = vec![first.clone(); usize::try_from(max)? + 1];
            self.add(place, "too many", Some(json!(items)), ending("less", max));
        }
        if let Some(min @ 1) = shape["min"].as_u64() {
            self.add(place, "too few", Some(json!([])), ending("greater", min));
        }
        let item = self.model.shape(shape["member"]["shape"].as_str().unwrap_or_default()).clone();
        // One item stands for all, but each may be another variant of a union.
        let examined = if item["union"] == true { usize::MAX } else { 1 };
        for (index, valid) in valid.as_array().into_iter().flatten().enumerate().take(examined) {
            let mut below = place.steps.to_vec();
            below.push(Step::Item(index));
            let shown = format!("{}.{}.member", place.shown, index + 1);
            let sensitive = item["sensitive"] == true;
            self.value(&item, valid, &Place { shown: &shown, steps: &below, location: place.location, sensitive })?;
        }
        Ok(())
    }

    fn map(&mut self, shape: &Value, place: &Place) {
        self.add_unreadable(place, json!([1]));
        let rules =
            ["key", "value"].map(|part| Rule::of(self.model.shape(shape[part]["shape"].as_str().unwrap_or_default())));
        if let Some(max) = shape["max"].as_u64() {
            let entries: Map<_, _> = (0..=max).map(|index| (format!("key-{index}"), json!("value"))).collect();
            let ending = format!("failed to satisfy constraint: Member must have length less than or equal to {max}");
            self.add(place, "too many", Some(entries.into()), Sentence::Ending(ending));
        }
        for (index, (part, rule)) in [("keys", &rules[0]), ("value", &rules[1])].into_iter().enumerate() {
            let Some(max) = rule.max else { continue };
            let mut texts = ["a".to_owned(), "a".to_owned()];
            texts[index] = "a".repeat(max + 1);
            let [key, value] = texts;
            let ending = format!(
                "at '{}' failed to satisfy constraint: Map {part} must satisfy constraint: {}",
                place.shown,
                rule.demands()
            );
            self.add(place, &format!("{part} too long"), Some(json!({key: value})), Sentence::Ending(ending));
        }
    }
}

/// What a text must be.
struct Rule {
    min: Option<usize>,
    max: Option<usize>,
    words: Vec<String>,
    pattern: Option<(String, Regex)>,
}

impl Rule {
    fn of(shape: &Value) -> Self {
        let length = |name: &str| shape[name].as_u64().and_then(|length| usize::try_from(length).ok());
        let words = shape["enum"].as_array().into_iter().flatten();
        let pattern = shape["pattern"].as_str().map(|shown| {
            // A dash between a range and a letter means itself in the service's dialect.
            let meant = shown.replace("0-9-_", "0-9_\\-").replace("a-z-]", "a-z\\-]");
            (shown.to_owned(), Regex::new(&format!("^(?:{meant})$")).expect("a pattern of the model"))
        });
        Self {
            min: length("min"),
            max: length("max"),
            words: words.filter_map(Value::as_str).map(str::to_owned).collect(),
            pattern,
        }
    }

    fn longest(max: usize) -> String {
        format!("Member must have length less than or equal to {max}")
    }

    fn shortest(min: usize) -> String {
        format!("Member must have length greater than or equal to {min}")
    }

    fn broken_by(&self, text: &str) -> Vec<String> {
        if !self.words.is_empty() {
            let known = self.words.iter().any(|word| word == text);
            let demand = format!("Member must satisfy enum value set: [{}]", self.words.join(", "));
            return if known { Vec::new() } else { vec![demand] };
        }
        let mut broken = Vec::new();
        broken.extend(self.max.filter(|max| text.len() > *max).map(Self::longest));
        broken.extend(self.min.filter(|min| text.len() < *min).map(Self::shortest));
        if let Some((shown, _)) = self.pattern.as_ref().filter(|(_, pattern)| !pattern.is_match(text)) {
            broken.push(format!("Member must satisfy regular expression pattern: {shown}"));
        }
        broken
    }

    fn demands(&self) -> String {
        let mut demands = Vec::new();
        demands.extend(self.max.map(Self::longest));
        demands.extend(self.min.map(Self::shortest));
        demands.extend(
            self.pattern.as_ref().map(|(shown, _)| format!("Member must satisfy regular expression pattern: {shown}")),
        );
        format!("[{}]", demands.join(", "))
    }
}
