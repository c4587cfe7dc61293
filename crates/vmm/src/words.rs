//! What a VMM says of itself, made fit for logs and people: its guest may have chosen the words.

/// The most characters of it that are kept.
const CHARACTERS: usize = 500;

/// Without what moves a terminal's cursor or turns the direction of writing, and not too much of it.
pub(crate) fn cleaned(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|&c| !c.is_control() && !turns(c)).take(CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_are_left() {
        assert_eq!(cleaned("no\x1b[2J\n\u{202e}way"), "no[2Jway");
        assert_eq!(cleaned(&"x".repeat(10_000)).len(), CHARACTERS);
    }
}
