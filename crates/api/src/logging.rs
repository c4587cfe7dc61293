//! Where an image's or a microVM's output goes.

use serde::{Deserialize, Serialize};

use crate::{
    constraint::{Constraints, LOG_GROUP, LOG_STREAM, TextRule},
    input::Field,
};

/// The `Logging` union: exactly one of its members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Logging {
    /// Nowhere.
    Disabled(LoggingDisabled),
    /// To a log group.
    CloudWatch(CloudWatchLogging),
}

/// The empty structure that says "off".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggingDisabled {}

/// Names of a log group and a stream in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudWatchLogging {
    /// The group.
    pub log_group: Option<String>,
    /// The stream.
    pub log_stream: Option<String>,
}

const LOG_GROUP_NAME: TextRule = TextRule::length(1, 512).matching(&LOG_GROUP);
const LOG_STREAM_NAME: TextRule = TextRule::length(1, 512).matching(&LOG_STREAM);

impl Logging {
    /// Reads the union from a request.
    pub(crate) fn read(field: Field<'_>, constraints: &mut Constraints) -> Option<Self> {
        let (name, field) = field.union(constraints, &["disabled", "cloudWatch"])?;
        let members = field.members(constraints)?;
        Some(match name {
            "disabled" => Self::Disabled(LoggingDisabled {}),
            _ => Self::CloudWatch(CloudWatchLogging {
                log_group: members.field("logGroup").text(constraints, &LOG_GROUP_NAME),
                log_stream: members.field("logStream").text(constraints, &LOG_STREAM_NAME),
            }),
        })
    }
}
