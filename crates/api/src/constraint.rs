//! Collects every violation of a request's shape into one message, in the service's words.

use std::{fmt::Write as _, sync::LazyLock};

use regex::Regex;

use crate::{catalogue, error::ServiceError};

/// Most violations spelled out in one message; the count tells of the rest.
const SPELLED_MAX: usize = 50;

/// Most characters of a value shown in a message.
const SHOWN_CHARS_MAX: usize = 4096;

/// A pattern a whole text must match.
pub struct Pattern {
    shown: &'static str,
    whole: LazyLock<Regex>,
}

impl Pattern {
    /// A pattern as the model writes it.
    pub(crate) fn matches(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }
}

macro_rules! pattern {
    ($(#[$doc:meta])* $name:ident, $shown:literal) => {
        pattern!($(#[$doc])* $name, $shown, $shown);
    };
    ($(#[$doc:meta])* $name:ident, $shown:literal, $meant:literal) => {
        $(#[$doc])*
        pub static $name: Pattern = Pattern {
            shown: $shown,
            whole: LazyLock::new(|| Regex::new(concat!("^(?:", $meant, ")$")).expect("the pattern is well formed")),
        };
    };
}

// The service's `\s` is the ASCII one; this crate's would be Unicode's.
pattern!(
    /// `NonBlankString` and the shapes like it.
    NON_BLANK, r"[^\s]+", r"[^ \t\n\x0B\x0C\r]+"
);
pattern!(
    /// An image's name.
    IMAGE_NAME, r"[a-zA-Z0-9-_]+", r"[a-zA-Z0-9_\-]+"
);
pattern!(
    /// A role.
    ROLE_ARN, r"arn:aws[a-z\-]*:iam::[0-9]{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+"
);
pattern!(
    /// A key of the key management service, by id, ARN or alias.
    KMS_KEY,
    r"(arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key|alias)/[a-zA-Z0-9:/_-]+|alias/[a-zA-Z0-9:/_-]+|[a-zA-Z0-9-]+)"
);
pattern!(
    /// A log group.
    LOG_GROUP, r"[a-zA-Z0-9_\-/.#]+"
);
pattern!(
    /// A log stream.
    LOG_STREAM, r"[^:*]*"
);
pattern!(
    /// A tag's key or value.
    TAG_TEXT, r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)"
);

pattern!(
    /// A connector's name.
    CONNECTOR_NAME,
    r"(arn:aws[a-zA-Z-]*:lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}:network-connector:[a-zA-Z0-9-_]+(:[1-9][0-9]*)?)|[a-zA-Z0-9_-]{1,64}",
    r"(arn:aws[a-zA-Z-]*:lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-[0-9]{1}:[0-9]{12}:network-connector:[a-zA-Z0-9_\-]+(:[1-9][0-9]*)?)|[a-zA-Z0-9_\-]{1,64}"
);
pattern!(
    /// A connector's role.
    CONNECTOR_ROLE_ARN,
    r"arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+",
    r"arn:(aws[a-zA-Z-]*)?:iam::[0-9]{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+"
);
pattern!(
    /// A subnet.
    SUBNET_ID, r"subnet-[0-9a-z]*"
);
pattern!(
    /// A security group.
    SECURITY_GROUP_ID, r"sg-[0-9a-zA-Z]*"
);
pattern!(
    /// What can have tags: everything of Lambda's that can, also what is not served here.
    TAGGABLE_RESOURCE,
    r"arn:(aws[a-zA-Z-]*):lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:\d{12}:(function:[a-zA-Z0-9-_]+(:(\$LATEST|[a-zA-Z0-9-_]+))?|layer:([a-zA-Z0-9-_]+)|code-signing-config:csc-[a-z0-9]{17}|event-source-mapping:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|(capacity-provider|network-connector|microvm-image):[a-zA-Z0-9-_]+)",
    r"arn:(aws[a-zA-Z-]*):lambda:(eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-[0-9]{1}:[0-9]{12}:(function:[a-zA-Z0-9_\-]+(:(\$LATEST|[a-zA-Z0-9_\-]+))?|layer:([a-zA-Z0-9_\-]+)|code-signing-config:csc-[a-z0-9]{17}|event-source-mapping:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|(capacity-provider|network-connector|microvm-image):[a-zA-Z0-9_\-]+)"
);

/// What a text must be.
#[derive(Clone, Copy)]
pub struct TextRule {
    /// Shortest, in UTF-16 units as the service counts.
    pub min: usize,
    /// Longest.
    pub max: usize,
    /// What it must match.
    pub pattern: Option<&'static Pattern>,
    /// Whether its value is kept out of messages.
    pub sensitive: bool,
}

impl TextRule {
    /// A text of a length.
    #[must_use]
    pub const fn length(min: usize, max: usize) -> Self {
        Self { min, max, pattern: None, sensitive: false }
    }

    /// A text of any length.
    #[must_use]
    pub const fn any() -> Self {
        Self::length(0, usize::MAX)
    }

    /// It must match, too.
    #[must_use]
    pub const fn matching(self, pattern: &'static Pattern) -> Self {
        Self { pattern: Some(pattern), ..self }
    }

    /// Its value is nobody's business.
    #[must_use]
    pub const fn hidden(self) -> Self {
        Self { sensitive: true, ..self }
    }

    fn broken_by(&self, text: &str) -> Vec<String> {
        let mut broken = length_broken_by(text.encode_utf16().count(), self.min, self.max);
        if let Some(pattern) = self.pattern
            && !pattern.matches(text)
        {
            broken.push(pattern_sentence(pattern));
        }
        broken
    }

    /// Everything it demands, as the service lists it for the keys and values of a map.
    fn demands(&self) -> String {
        let mut demands = format!("[{}, {}", longest(self.max), shortest(self.min));
        if let Some(pattern) = self.pattern {
            let _ = write!(demands, ", {}", pattern_sentence(pattern));
        }
        demands.push(']');
        demands
    }
}

fn longest(max: usize) -> String {
    format!("Member must have length less than or equal to {max}")
}

fn shortest(min: usize) -> String {
    format!("Member must have length greater than or equal to {min}")
}

fn pattern_sentence(pattern: &Pattern) -> String {
    format!("Member must satisfy regular expression pattern: {}", pattern.shown)
}

fn length_broken_by(length: usize, min: usize, max: usize) -> Vec<String> {
    let mut broken = Vec::new();
    if length > max {
        broken.push(longest(max));
    }
    if length < min {
        broken.push(shortest(min));
    }
    broken
}

/// The violations found so far.
#[derive(Debug, Default)]
pub struct Constraints {
    violations: Vec<String>,
    count: usize,
    unreadable: Option<ServiceError>,
}

impl Constraints {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing is well if anything was noted: an unreadable member first, since the service reads before it checks.
    pub fn finish(self) -> Result<(), ServiceError> {
        if let Some(error) = self.unreadable {
            return Err(error);
        }
        if self.count == 0 {
            return Ok(());
        }
        let plural = if self.count == 1 { "" } else { "s" };
        let message = format!("{} validation error{plural} detected: {}", self.count, self.violations.join("; "));
        Err(ServiceError::Validation { message })
    }

    /// Notes a member of the wrong JSON type.
    pub fn wrong_type(&mut self, message: impl Into<String>) {
        self.unreadable.get_or_insert_with(|| catalogue::wrong_type(message));
    }

    /// Notes input that cannot be read at all.
    pub fn unreadable(&mut self) {
        self.unreadable.get_or_insert_with(catalogue::unreadable_input);
    }

    /// Notes a violation; `shown` is the value, unless it is sensitive.
    pub fn violated(&mut self, shown: Option<&str>, path: &str, demand: &str) {
        self.count += 1;
        if self.violations.len() < SPELLED_MAX {
            let value = shown.map(|text| {
                let cut = text.char_indices().nth(SHOWN_CHARS_MAX).map_or(text.len(), |(index, _)| index);
                format!("'{}' ", &text[..cut])
            });
            let value = value.unwrap_or_default();
            let path: String = path.chars().take(512).collect();
            self.violations.push(format!("Value {value}at '{path}' failed to satisfy constraint: {demand}"));
        }
    }

    /// Notes a required member that is not there.
    pub fn missing(&mut self, path: &str) {
        self.count += 1;
        if self.violations.len() < SPELLED_MAX {
            self.violations
                .push(format!("Value null at '{path}' failed to satisfy constraint: Member must not be null"));
        }
    }

    /// Checks a text.
    pub fn text(&mut self, path: &str, text: &str, rule: &TextRule) {
        for demand in rule.broken_by(text) {
            self.violated((!rule.sensitive).then_some(text), path, &demand);
        }
    }

    /// Checks how many members a list or map has.
    pub fn members(&mut self, path: &str, shown: Option<&str>, count: usize, min: usize, max: usize) {
        for demand in length_broken_by(count, min, max) {
            self.violated(shown, path, &demand);
        }
    }

    /// Checks a number.
    pub fn number(&mut self, path: &str, number: i32, min: i32, max: i32) {
        if number > max {
            let demand = format!("Member must have value less than or equal to {max}");
            self.violated(Some(&number.to_string()), path, &demand);
        }
        if number < min {
            let demand = format!("Member must have value greater than or equal to {min}");
            self.violated(Some(&number.to_string()), path, &demand);
        }
    }

    /// Checks the keys and values of a map, each kind once, as the service does.
    pub fn map<'a>(
        &mut self,
        path: &str,
        entries: impl Iterator<Item = (&'a str, &'a str)> + Clone,
        key: &TextRule,
        value: &TextRule,
    ) {
        let shown = (!value.sensitive).then(|| {
            let parts: Vec<_> = entries.clone().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{{{}}}", parts.join(", "))
        });
        if entries.clone().any(|(text, _)| !key.broken_by(text).is_empty()) {
            self.violated(shown.as_deref(), path, &format!("Map keys must satisfy constraint: {}", key.demands()));
        }
        if entries.clone().any(|(_, text)| !value.broken_by(text).is_empty()) {
            self.violated(shown.as_deref(), path, &format!("Map value must satisfy constraint: {}", value.demands()));
        }
    }
}
