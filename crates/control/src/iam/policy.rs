//! Policy documents, in the form AWS gives them. What is understood here has the meaning it has there; what is not is
//! refused when the policy is put, never passed over: a condition that is ignored is a door left open.

use serde::{Deserialize, de::IgnoredAny};

use super::pattern::Pattern;

/// Longest document, in characters other than white space, as AWS counts its managed policies.
pub const DOCUMENT_CHARACTERS_MAX: usize = 6144;

/// Largest document as it is written, white space and all.
pub const DOCUMENT_BYTES_MAX: usize = 64 * 1024;

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// It is too long.
    #[error(
        "the policy has {characters} characters without white space, {bytes} bytes with it; at most \
         {DOCUMENT_CHARACTERS_MAX} characters and {DOCUMENT_BYTES_MAX} bytes are allowed: split it into several policies"
    )]
    TooLong {
        /// Without white space.
        characters: usize,
        /// With it.
        bytes: usize,
    },
    /// It is not JSON of this form.
    #[error("the policy cannot be read: {message}")]
    Form {
        /// What is wrong, and in which line.
        message: String,
    },
    /// Its `Version` is not one of the language's.
    #[error("Version is '{version}'; write \"2012-10-17\"")]
    Version {
        /// What it says.
        version: String,
    },
    /// It has no statement.
    #[error("Statement is empty; a policy needs at least one")]
    Empty,
    /// Something in a statement.
    #[error("statement {number}: {message}")]
    Statement {
        /// Counted from 1.
        number: usize,
        /// What is wrong, and what would be right.
        message: String,
    },
}

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Effect {
    /// It allows.
    Allow,
    /// It denies, whatever else allows.
    Deny,
}

/// What a statement speaks of: what its patterns stand for, or all but that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    patterns: Vec<Pattern>,
    except: bool,
}

impl Choice {
    /// Is this spoken of?
    #[must_use]
    pub fn takes(&self, text: &str) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(text)) != self.except
    }

    /// Is everything that begins so spoken of? Says no in doubt.
    #[must_use]
    pub fn takes_all(&self, prefix: &str) -> bool {
        match self.except {
            false => self.patterns.iter().any(|pattern| pattern.covers(prefix)),
            true => !self.patterns.iter().any(|pattern| pattern.touches(prefix)),
        }
    }

    /// Is anything that begins so spoken of? Says yes in doubt.
    #[must_use]
    pub fn takes_some(&self, prefix: &str) -> bool {
        match self.except {
            false => self.patterns.iter().any(|pattern| pattern.touches(prefix)),
            true => !self.patterns.iter().any(|pattern| pattern.covers(prefix)),
        }
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// What it does.
    pub effect: Effect,
    /// To which actions.
    pub actions: Choice,
    /// On which resources.
    pub resources: Choice,
}

/// A policy, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its rules, in no order that matters.
    pub statements: Vec<Statement>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// A document as it is written. Members that are known and not taken are named, to be refused by name.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Document {
    version: Option<String>,
    #[serde(rename = "Id")]
    _id: Option<String>,
    statement: Statements,
}

// By hand: an untagged enum would lose which member of a statement is wrong.
struct Statements(Vec<Written>);

impl<'de> Deserialize<'de> for Statements {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Statements;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a statement or a list of statements")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Statements, A::Error> {
                Written::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(|one| Statements(vec![one]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, seq: A) -> Result<Statements, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(seq)).map(Statements)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Written {
    sid: Option<String>,
    effect: Effect,
    action: Option<OneOrMany<String>>,
    not_action: Option<OneOrMany<String>>,
    resource: Option<OneOrMany<String>>,
    not_resource: Option<OneOrMany<String>>,
    condition: Option<IgnoredAny>,
    principal: Option<IgnoredAny>,
    not_principal: Option<IgnoredAny>,
}

impl Policy {
    /// Reads a document.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let characters = text.chars().filter(|character| !character.is_whitespace()).count();
        if characters > DOCUMENT_CHARACTERS_MAX || text.len() > DOCUMENT_BYTES_MAX {
            return Err(PolicyError::TooLong { characters, bytes: text.len() });
        }
        let document: Document =
            serde_json::from_str(text).map_err(|error| PolicyError::Form { message: error.to_string() })?;
        if let Some(version) = document.version
            && !["2012-10-17", "2008-10-17"].contains(&version.as_str())
        {
            return Err(PolicyError::Version { version: version.chars().take(64).collect() });
        }
        let written = document.statement.0;
        if written.is_empty() {
            return Err(PolicyError::Empty);
        }
        let mut sids = Vec::new();
        let mut statements = Vec::new();
        for (index, statement) in written.into_iter().enumerate() {
            let failed = |message| PolicyError::Statement { number: index + 1, message };
            if let Some(sid) = &statement.sid {
                check_sid(sid, &sids).map_err(failed)?;
                sids.push(sid.clone());
            }
            statements.push(understood(statement).map_err(failed)?);
        }
        Ok(Self { statements })
    }

    /// What stands in for a policy that cannot be read any more: it may have denied something.
    #[must_use]
    pub fn deny_everything() -> Self {
        let everything = || Choice { patterns: vec![Pattern::exact("*")], except: false };
        Self { statements: vec![Statement { effect: Effect::Deny, actions: everything(), resources: everything() }] }
    }
}

fn check_sid(sid: &str, earlier: &[String]) -> Result<(), String> {
    if !sid.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err("Sid must be of the letters A-Z, a-z and digits".into());
    }
    if earlier.iter().any(|it| it == sid) {
        return Err(format!("Sid '{sid}' is used by an earlier statement; each needs its own"));
    }
    Ok(())
}

fn understood(statement: Written) -> Result<Statement, String> {
    let Written { sid: _, effect, action, not_action, resource, not_resource, condition, principal, not_principal } =
        statement;
    if condition.is_some() {
        return Err("Condition is not supported here, and is not ignored either: state what is meant in Action and \
                    Resource, or leave the statement out"
            .into());
    }
    if principal.is_some() || not_principal.is_some() {
        return Err("Principal and NotPrincipal do not belong in a user's policy: it speaks of its user alone".into());
    }
    Ok(Statement {
        effect,
        actions: choice("Action", action, not_action, check_action, Pattern::any_case)?,
        resources: choice("Resource", resource, not_resource, check_resource, Pattern::exact)?,
    })
}

fn choice(
    name: &str,
    listed: Option<OneOrMany<String>>,
    excepted: Option<OneOrMany<String>>,
    check: fn(&str) -> Result<(), String>,
    pattern: fn(&str) -> Pattern,
) -> Result<Choice, String> {
    let (name, texts, except) = match (listed, excepted) {
        (Some(texts), None) => (name.to_owned(), texts.into_vec(), false),
        (None, Some(texts)) => (format!("Not{name}"), texts.into_vec(), true),
        (None, None) => return Err(format!("{name} is missing; give it, or Not{name}")),
        (Some(_), Some(_)) => return Err(format!("{name} and Not{name} exclude each other; give one")),
    };
    if texts.is_empty() {
        return Err(format!("{name} is an empty list; name at least one"));
    }
    for text in &texts {
        check(text).map_err(|message| {
            let shown: String = text.chars().take(200).collect();
            format!("{name} '{shown}' {message}")
        })?;
    }
    Ok(Choice { patterns: texts.iter().map(|text| pattern(text)).collect(), except })
}

fn no_variable(text: &str) -> Result<(), String> {
    if text.contains("${") {
        return Err("has a policy variable (${…}), which is not supported here: write the name out".into());
    }
    Ok(())
}

fn check_action(text: &str) -> Result<(), String> {
    no_variable(text)?;
    let form =
        || Err("is not an action: write service:Operation, such as lambda:RunMicrovm or lambda:Get*, or *".into());
    if text == "*" {
        return Ok(());
    }
    let fits = |part: &str, more: &[u8]| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
    };
    match text.split_once(':') {
        Some((service, operation)) if fits(service, b"-") && fits(operation, b"*?-_") => Ok(()),
        Some(_) | None => form(),
    }
}

fn check_resource(text: &str) -> Result<(), String> {
    no_variable(text)?;
    if text.len() > 2048 {
        return Err("is longer than 2048 bytes".into());
    }
    // A wildcard may stand for the rest of an ARN, colons and all.
    let whole = text.split(':').count() >= 6 || text.contains('*');
    if text == "*" || (text.starts_with("arn:") && whole) {
        return Ok(());
    }
    Err("is not a resource: write an ARN, such as arn:aws:lambda:us-east-1:000000000000:microvm-image:shop, or *"
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Policy::parse(text).expect_err(text).to_string()
    }

    fn statement(members: &str) -> String {
        refusal(&format!(r#"{{"Version": "2012-10-17", "Statement": [{{"Effect": "Allow", {members}}}]}}"#))
    }

    #[test]
    fn one_or_many_of_everything() {
        let one = r#"{"Version": "2012-10-17", "Statement":
            {"Sid": "A1", "Effect": "Allow", "Action": "lambda:*", "Resource": "*"}}"#;
        let many = r#"{"Id": "x", "Statement":
            [{"Effect": "Allow", "Action": ["lambda:*"], "Resource": ["*"]}]}"#;
        assert_eq!(Policy::parse(one), Policy::parse(many));
        assert_eq!(Policy::parse(one).expect("a policy").statements.len(), 1);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (members, words) in [
            (r#""Action": "*", "Resource": "*", "Condition": {"Bool": {"aws:SecureTransport": "true"}}"#, "Condition"),
            (r#""Action": "*", "Resource": "*", "Principal": "*""#, "Principal"),
            (r#""Action": "*", "Resource": "*", "Resources": "*""#, "unknown field `Resources`"),
            (r#""Action": "*", "Action": "lambda:*", "Resource": "*""#, "duplicate field `Action`"),
            (r#""Resource": "*""#, "Action is missing"),
            (r#""Action": "*""#, "Resource is missing"),
            (r#""Action": [], "Resource": "*""#, "Action is an empty list"),
            (r#""Action": "*", "NotAction": "s3:*", "Resource": "*""#, "exclude each other"),
            (r#""Action": "RunMicrovm", "Resource": "*""#, "Action 'RunMicrovm' is not an action"),
            (r#""Action": "*:*", "Resource": "*""#, "Action '*:*' is not an action"),
            (r#""Action": "*", "Resource": "shop""#, "Resource 'shop' is not a resource"),
            (r#""Action": "*", "Resource": "arn:aws:s3""#, "Resource 'arn:aws:s3' is not a resource"),
            (r#""Action": "*", "NotResource": "arn:aws:s3:::${aws:username}/*""#, "policy variable"),
            (r#""Sid": "a b", "Action": "*", "Resource": "*""#, "Sid"),
        ] {
            let said = statement(members);
            assert!(said.contains(words), "{members}: {said}");
        }
        assert!(refusal(r#"{"Statement": [{"Effect": "Perhaps"}]}"#).contains("`Perhaps`"));
        assert!(refusal(r#"{"Statement": []}"#).contains("Statement is empty"));
        assert!(refusal(r#"{"Version": "2012-10-17"}"#).contains("missing field `Statement`"));
        assert!(refusal(r#"{"Version": "2026-01-01", "Statement": []}"#).contains("2012-10-17"));
        let twice = r#"{"Sid": "A", "Effect": "Deny", "Action": "*", "Resource": "*"}"#;
        assert!(refusal(&format!(r#"{{"Statement": [{twice}, {twice}]}}"#)).starts_with("statement 2: Sid 'A'"));
        assert!(refusal("nonsense").contains("line 1"));
    }

    #[test]
    fn white_space_does_not_count_but_is_bounded() {
        let padded = |characters: usize, white: usize| {
            let head = r#"{"Statement":{"Effect":"Deny","Action":"*","Resource":"arn:aws:s3:::"#;
            let tail = r#""}}"#;
            let fill = "x".repeat(characters - head.len() - tail.len());
            format!("{}{head}{fill}{tail}", " ".repeat(white))
        };
        // The longest resource is shorter than the longest policy.
        let long = |count: usize| {
            let list: Vec<_> = (0..count).map(|_| format!(r#""arn:aws:s3:::{}""#, "x".repeat(1000))).collect();
            format!(r#"{{"Statement":{{"Effect":"Deny","Action":"*","Resource":[{}]}}}}"#, list.join(","))
        };
        Policy::parse(&padded(1000, 50_000)).expect("white space is free");
        Policy::parse(&long(5)).expect("it is within the limit");
        assert!(refusal(&long(7)).contains("at most 6144 characters"));
        assert!(refusal(&padded(1000, DOCUMENT_BYTES_MAX)).contains("bytes are allowed"));
        assert!(refusal(&padded(3000, 0)).contains("longer than 2048"));
    }
}
