//! What a person may say to the command itself, as with ssh: a tilde at the beginning of a line, and what comes after it. No
//! I/O.

/// What was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// `~.`: end it.
    Disconnect,
    /// `~?`: what can be said.
    Help,
}

/// What goes to the shell of what was typed, up to something that was said and after it.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// To the shell.
    Typed(Vec<u8>),
    /// To the command.
    Said(Said),
}

/// Where in a line the typist is.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Escapes {
    /// At its beginning, as after a Return.
    #[default]
    Begin,
    /// After a tilde there, which nobody has got yet.
    Tilde,
    /// Somewhere in it.
    Within,
}

impl Escapes {
    /// Takes what was typed apart.
    pub fn feed(&mut self, typed: &[u8]) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut plain = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            let said = match (*self, byte) {
                (Self::Tilde, b'.') => Some(Said::Disconnect),
                (Self::Tilde, b'?') => Some(Said::Help),
                _ => None,
            };
            if let Some(said) = said {
                if !plain.is_empty() {
                    parts.push(Part::Typed(std::mem::take(&mut plain)));
                }
                parts.push(Part::Said(said));
                *self = Self::Begin;
                continue;
            }
            *self = match (*self, byte) {
                (Self::Begin, b'~') => {
                    *self = Self::Tilde;
                    continue;
                }
                // Two stand for one.
                (Self::Tilde, b'~') => Self::Within,
                (Self::Tilde, b'\r' | b'\n') => {
                    plain.push(b'~');
                    Self::Begin
                }
                (Self::Tilde, _) => {
                    plain.push(b'~');
                    Self::Within
                }
                (_, b'\r' | b'\n') => Self::Begin,
                (Self::Begin | Self::Within, _) => Self::Within,
            };
            plain.push(byte);
        }
        if !plain.is_empty() {
            parts.push(Part::Typed(plain));
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of these pieces leads to, all typed after one another.
    fn fed(pieces: &[&str]) -> Vec<Part> {
        let mut escapes = Escapes::default();
        pieces.iter().flat_map(|piece| escapes.feed(piece.as_bytes())).collect()
    }

    fn typed(text: &str) -> Part {
        Part::Typed(text.as_bytes().to_vec())
    }

    #[test]
    fn a_tilde_counts_at_the_beginning_of_a_line_alone() {
        assert_eq!(fed(&["~."]), [Part::Said(Said::Disconnect)]);
        assert_eq!(fed(&["ls\r~", "."]), [typed("ls\r"), Part::Said(Said::Disconnect)]);
        assert_eq!(fed(&["ls ~.\r"]), [typed("ls ~.\r")]);
        assert_eq!(fed(&["cd ~\r", "x~?"]), [typed("cd ~\r"), typed("x~?")]);
        assert_eq!(fed(&["~?", "~.x"]), [Part::Said(Said::Help), Part::Said(Said::Disconnect), typed("x")]);
    }

    #[test]
    fn whatever_else_follows_it_was_meant() {
        assert_eq!(fed(&["~/bin/x\r"]), [typed("~/bin/x\r")]);
        assert_eq!(fed(&["~~."]), [typed("~.")]);
        assert_eq!(fed(&["~", "~"]), [typed("~")]);
        assert_eq!(fed(&["~\r~."]), [typed("~\r"), Part::Said(Said::Disconnect)]);
        assert_eq!(fed(&["~\u{3bb}"]), [typed("~λ")]);
    }
}
