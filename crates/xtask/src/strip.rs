//! Takes a Rust file apart into code and string literals, so that a word in a comment breaks no rule.

/// A file in parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stripped {
    /// The code, with comments and the insides of literals gone.
    pub code: String,
    /// The code before the first `#[cfg(test)]`: what ships.
    pub shipped: String,
    /// The string literals of what ships.
    pub strings: Vec<String>,
}

impl Stripped {
    /// Does the code name this word, alone (not as a part of a longer one)?
    pub fn names(&self, word: &str) -> bool {
        has_word(&self.code, word)
    }

    /// Does what ships name this path or word?
    pub fn ships(&self, word: &str) -> bool {
        has_word(&self.shipped, word)
    }
}

fn is_word(character: Option<char>) -> bool {
    character.is_some_and(|character| character.is_alphanumeric() || character == '_')
}

fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| !is_word(code[..at].chars().next_back()) && !is_word(code[at + word.len()..].chars().next()))
}

/// Takes a file apart.
pub fn strip(text: &str) -> Stripped {
    let shipped = text.find("#[cfg(test)]").map_or(text, |at| &text[..at]);
    let (code, _) = scan(text);
    let (shipped, strings) = scan(shipped);
    Stripped { code, shipped, strings }
}

// A scanner, not a parser: it only has to know where comments and literals start and end.
fn scan(text: &str) -> (String, Vec<String>) {
    let (mut code, mut strings) = (String::with_capacity(text.len()), Vec::new());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
        } else if rest.starts_with("/*") {
            rest = after_block_comment(rest);
        } else if let Some(hashes) = raw_string(rest, &code) {
            let open = rest.find('"').expect("a raw string has a quote") + 1;
            let close = format!("\"{}", "#".repeat(hashes));
            let end = rest[open..].find(&close).map_or(rest.len(), |at| open + at);
            strings.push(rest[open..end].to_owned());
            code.push_str("\"\"");
            rest = &rest[(end + close.len()).min(rest.len())..];
        } else if character == '"' {
            let end = end_of_string(rest);
            strings.push(rest[1..end].to_owned());
            code.push_str("\"\"");
            rest = &rest[(end + 1).min(rest.len())..];
        } else if let Some(length) = character_literal(rest) {
            code.push_str("' '");
            rest = &rest[length..];
        } else {
            code.push(character);
            rest = &rest[character.len_utf8()..];
        }
    }
    (code, strings)
}

fn after_block_comment(text: &str) -> &str {
    let (mut depth, mut at) = (0usize, 0usize);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return &text[at..];
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    ""
}

// `r"…"`, `r#"…"#`, `br"…"`: how many hashes; `None` if this is not the start of one.
fn raw_string(text: &str, before: &str) -> Option<usize> {
    if is_word(before.chars().next_back()) {
        return None;
    }
    let text = text.strip_prefix('b').unwrap_or(text).strip_prefix('r')?;
    let hashes = text.chars().take_while(|character| *character == '#').count();
    text[hashes..].starts_with('"').then_some(hashes)
}

fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at,
            _ => {}
        }
    }
    text.len()
}

// `'x'` and `'\n'`, but not the lifetime `'a`.
fn character_literal(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('\'')?;
    if let Some(escaped) = inside.strip_prefix('\\') {
        return escaped.char_indices().skip(1).find(|(_, c)| *c == '\'').map(|(at, _)| at + 3);
    }
    let first = inside.chars().next()?;
    inside[first.len_utf8()..].starts_with('\'').then_some(first.len_utf8() + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let file = strip(
            "// unsafe\nfn f<'a>(x: &'a str) { /* todo /* nested */ */ g(\"dbg \\\" x\", 'y', '\\'', r#\"raw \"q\" x\"#); }",
        );
        assert!(!file.names("unsafe") && !file.names("todo") && !file.names("dbg") && !file.names("raw"));
        assert!(file.names("g") && file.names("str"));
        assert_eq!(file.strings, ["dbg \\\" x", "raw \"q\" x"]);
    }

    #[test]
    fn a_word_is_not_part_of_another() {
        let file = strip("#![forbid(unsafe_code)]");
        assert!(!file.names("unsafe"));
        assert!(file.names("unsafe_code"));
    }

    #[test]
    fn tests_do_not_ship() {
        let file = strip("fn f() {}\n#[cfg(test)]\nmod tests { use std::fs; }");
        assert!(file.names("std::fs"));
        assert!(!file.ships("std::fs"));
    }
}
