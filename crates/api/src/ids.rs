//! Names of things. Each kind has its own type, so that two cannot be swapped; each is checked when it is parsed.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not an identifier of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a {kind}")]
pub struct ParseIdError {
    /// What was asked for.
    pub kind: &'static str,
    /// What was given.
    pub text: String,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh random one.
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The number behind it.
            #[must_use]
            pub fn uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.as_hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            // Only the lower-case hyphenated form: these ids become file names, where two spellings would be two files.
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix($prefix)
                    .and_then(|rest| Uuid::try_parse(rest).ok().filter(|id| id.as_hyphenated().to_string() == rest))
                    .map(Self)
                    .ok_or_else(|| ParseIdError { kind: $kind, text: text.chars().take(300).collect() })
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseIdError;
            fn try_from(text: String) -> Result<Self, ParseIdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

uuid_id!(
    /// The user's resource, which survives suspension: `microvm-<uuid>`.
    MicrovmId, "microvm-", "microVM id"
);
uuid_id!(
    /// One incarnation of a microVM: one VMM process. A resumed microVM has a new one.
    VmId, "vm-", "VM id"
);
uuid_id!(
    /// The first label of a microVM's endpoint. A different number than the microVM's, as in the real service.
    EndpointId, "", "endpoint label"
);
uuid_id!(
    /// The internal id of an image; its directory's name. A recreated image has a new one.
    ImageId, "", "image id"
);
uuid_id!(
    /// One build of one image version.
    BuildId, "", "build id"
);
uuid_id!(
    /// A network connector of the account's own: `nc-<uuid>`.
    ConnectorId, "nc-", "network connector id"
);

/// An image's version, `major.minor`; the minor number is always 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageVersion(u32);

impl ImageVersion {
    /// The first version of every image.
    pub const FIRST: Self = Self(1);

    /// The version with this major number.
    #[must_use]
    pub fn from_major(major: u32) -> Self {
        Self(major)
    }

    /// The major number.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.0
    }
}

impl fmt::Display for ImageVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.0", self.0)
    }
}

impl FromStr for ImageVersion {
    type Err = ParseIdError;

    // Accepts "3" as well as "3.0": the real service's documents show both. No sign and no leading zero: one version
    // has no further spellings.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let major = text.strip_suffix(".0").unwrap_or(text);
        major
            .parse()
            .ok()
            .filter(|number: &u32| *number >= 1 && number.to_string() == major)
            .map(Self)
            .ok_or_else(|| ParseIdError { kind: "image version", text: text.chars().take(300).collect() })
    }
}

impl TryFrom<String> for ImageVersion {
    type Error = ParseIdError;
    fn try_from(text: String) -> Result<Self, ParseIdError> {
        text.parse()
    }
}

impl From<ImageVersion> for String {
    fn from(version: ImageVersion) -> String {
        version.to_string()
    }
}
