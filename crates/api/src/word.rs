//! The service's enumerations: closed sets of words.

/// A closed set of words, each written the same on the wire, in the database and in a log.
pub trait Word: Copy + Sized + 'static {
    /// Every word, in the model's order.
    const ALL: &'static [Self];

    /// The word itself.
    fn as_str(self) -> &'static str;

    /// The value a word stands for.
    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.as_str() == word)
    }
}

/// A text that is not in the set of words asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a {kind}")]
pub struct ParseWordError {
    /// The set.
    pub kind: &'static str,
    /// What was given.
    pub text: String,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $crate::word::Word for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($crate::word::Word::as_str(*self))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::word::ParseWordError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $crate::word::Word::from_word(text).ok_or_else(|| $crate::word::ParseWordError {
                    kind: stringify!($name),
                    text: text.chars().take(300).collect(),
                })
            }
        }
    };
}
pub(crate) use words;
