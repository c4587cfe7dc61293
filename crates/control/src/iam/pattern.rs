//! A text with wildcards: `*` stands for any characters or none, `?` for exactly one.

/// A part of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Character(char),
    One,
    Any,
}

/// A pattern of actions or of resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    pieces: Vec<Piece>,
    any_case: bool,
}

impl Pattern {
    /// A pattern of resources, which tell upper from lower case.
    #[must_use]
    pub fn exact(text: &str) -> Self {
        Self::new(text, false)
    }

    /// A pattern of actions, which do not.
    #[must_use]
    pub fn any_case(text: &str) -> Self {
        Self::new(text, true)
    }

    fn new(text: &str, any_case: bool) -> Self {
        let mut pieces: Vec<Piece> = text
            .chars()
            .map(|character| match character {
                '*' => Piece::Any,
                '?' => Piece::One,
                other => Piece::Character(other),
            })
            .collect();
        pieces.dedup_by(|second, first| (*first, *second) == (Piece::Any, Piece::Any));
        Self { pieces, any_case }
    }

    fn takes(&self, piece: Piece, character: char) -> bool {
        match piece {
            Piece::Any | Piece::One => true,
            Piece::Character(wanted) if self.any_case => wanted.eq_ignore_ascii_case(&character),
            Piece::Character(wanted) => wanted == character,
        }
    }

    /// Does it stand for this text? Only the last `*` is ever tried again, so that the work is at most the product of the
    /// two lengths.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let (mut at, mut rest) = (0, text.chars());
        let mut again = None;
        loop {
            let here = rest.clone();
            match (self.pieces.get(at).copied(), rest.next()) {
                (None, None) => return true,
                (Some(Piece::Any), _) => {
                    at += 1;
                    rest = here.clone();
                    again = Some((at, here));
                }
                (Some(_), None) => return false,
                (Some(piece), Some(character)) if self.takes(piece, character) => at += 1,
                (Some(_) | None, Some(_)) => {
                    let Some((after, from)) = &mut again else { return false };
                    // What the `*` stands for becomes one character longer.
                    from.next();
                    at = *after;
                    rest = from.clone();
                }
            }
        }
    }

    /// The places in the pattern that can be reached once it has stood for this text, the end among them.
    fn reached(&self, text: &str) -> Vec<usize> {
        let mut places = self.with_skipped(vec![0]);
        for character in text.chars() {
            let mut next = Vec::new();
            for &place in &places {
                match self.pieces.get(place).copied() {
                    Some(Piece::Any) => next.push(place),
                    Some(piece) if self.takes(piece, character) => next.push(place + 1),
                    Some(_) | None => {}
                }
            }
            places = self.with_skipped(next);
        }
        places
    }

    /// These places and those behind a `*` that stands for nothing.
    fn with_skipped(&self, mut places: Vec<usize>) -> Vec<usize> {
        let mut index = 0;
        while let Some(&place) = places.get(index) {
            if self.pieces.get(place) == Some(&Piece::Any) {
                places.push(place + 1);
            }
            index += 1;
        }
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Can it stand for any text that begins so?
    #[must_use]
    pub fn touches(&self, prefix: &str) -> bool {
        !self.reached(prefix).is_empty()
    }

    /// Does it stand for every text that begins so?
    #[must_use]
    pub fn covers(&self, prefix: &str) -> bool {
        let last = self.pieces.len().wrapping_sub(1);
        self.pieces.last() == Some(&Piece::Any) && self.reached(prefix).contains(&last)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    /// What the words say, without a thought for the time it takes.
    fn naive(pattern: &[char], text: &[char]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (None, Some(_)) => false,
            (Some((&'*', pattern)), None) => naive(pattern, text),
            (Some((&'*', rest)), Some((_, shorter))) => naive(rest, text) || naive(pattern, shorter),
            (Some(_), None) => false,
            (Some((wanted, pattern)), Some((given, text))) => {
                (*wanted == '?' || wanted == given) && naive(pattern, text)
            }
        }
    }

    fn characters(text: &str) -> Vec<char> {
        text.chars().collect()
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_naive_one(pattern in "[abé*?]{0,9}", text in "[abé]{0,9}") {
            prop_assert_eq!(Pattern::exact(&pattern).matches(&text), naive(&characters(&pattern), &characters(&text)));
        }

        #[test]
        fn a_pattern_that_touches_a_beginning_matches_something_that_begins_so(
            pattern in "[ab*?]{0,7}", prefix in "[ab]{0,4}", rest in "[ab]{0,4}",
        ) {
            let it = Pattern::exact(&pattern);
            let whole = format!("{prefix}{rest}");
            // One that covers the beginning matches whatever follows; one that does not touch it matches nothing.
            prop_assert!(!it.covers(&prefix) || it.matches(&whole), "covers {}", prefix);
            prop_assert!(it.touches(&prefix) || !it.matches(&whole), "touches {}", prefix);
            prop_assert!(!it.covers(&prefix) || it.touches(&prefix));
        }
    }

    #[test]
    fn only_actions_may_be_written_in_any_case() {
        assert!(Pattern::any_case("LAMBDA:run*").matches("lambda:RunMicrovm"));
        assert!(!Pattern::exact("arn:aws:lambda:*:Shop").matches("arn:aws:lambda:us-east-1:1:microvm-image:shop"));
    }

    #[test]
    fn beginnings_are_covered_by_a_star_at_the_end_only() {
        let images = "arn:aws:lambda:us-east-1:1:microvm-image:";
        for (pattern, touches, covers) in [
            ("*", true, true),
            ("arn:aws:lambda:*", true, true),
            ("arn:*:microvm-image:*", true, true),
            ("arn:aws:lambda:us-east-1:1:microvm-image:**", true, true),
            ("arn:aws:lambda:us-east-1:1:microvm-image:shop", true, false),
            ("arn:aws:lambda:us-east-1:1:microvm-image:?*", true, false),
            ("arn:aws:lambda:us-east-1:1:microvm-image:*a", true, false),
            ("arn:aws:lambda:us-east-1:2:microvm-image:*", false, false),
            ("arn:aws:s3:::*", false, false),
            ("", false, false),
        ] {
            let it = Pattern::exact(pattern);
            assert_eq!((it.touches(images), it.covers(images)), (touches, covers), "{pattern}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let text = "a".repeat(2000);
        let begin = Instant::now();
        let hostile = Pattern::exact(&"a*".repeat(1000).replace("a*", "*a*a"));
        assert!(!hostile.matches(&format!("{text}b")));
        assert!(!Pattern::exact(&format!("{}b", "*a?".repeat(600))).matches(&text));
        assert!(hostile.touches(&"b".repeat(10)), "it begins with a star");
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
}
