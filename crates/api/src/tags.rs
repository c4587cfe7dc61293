//! Tags: shapes of the three operations on them, and the rules that every set of tags obeys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    catalogue,
    constraint::{Constraints, TAG_TEXT, TAGGABLE_RESOURCE, TextRule},
    error::ServiceError,
    input::{FromInput, Input},
};

/// Tags of a resource.
pub type Tags = BTreeMap<String, String>;

/// Most tags of one resource: the service documents none, and this is what AWS allows everywhere else.
pub const TAGS_MAX: usize = 50;

/// What a key must be.
pub const TAG_KEY: TextRule = TextRule::length(1, 128).matching(&TAG_TEXT);

/// What a value must be.
pub const TAG_VALUE: TextRule = TextRule::length(0, 256).matching(&TAG_TEXT);

const RESOURCE: TextRule = TextRule::length(1, 10_000).matching(&TAGGABLE_RESOURCE);

/// Prefix of keys that only AWS may set, however it is written.
const RESERVED_PREFIX: &str = "aws:";

/// Refuses tags that only AWS may set, and too many of them. `tags` is all that the resource would have.
pub fn check(tags: &Tags) -> Result<(), ServiceError> {
    let reserved = |key: &&String| {
        key.get(..RESERVED_PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESERVED_PREFIX))
    };
    if let Some(key) = tags.keys().find(reserved) {
        return Err(catalogue::reserved_tag(key));
    }
    if tags.len() > TAGS_MAX {
        return Err(catalogue::too_many_tags(tags.len(), TAGS_MAX));
    }
    Ok(())
}

/// `ListTags`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListTagsRequest {
    /// ARN of the resource.
    pub resource: String,
}

/// What `ListTags` answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ListTagsResponse {
    /// Its tags; empty without any.
    pub tags: Tags,
}

/// `TagResource`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagResourceRequest {
    /// ARN of the resource.
    pub resource: String,
    /// Tags to add, or to give another value.
    pub tags: Tags,
}

/// What `TagResource` answers: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagResourceResponse {}

/// `UntagResource`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UntagResourceRequest {
    /// ARN of the resource.
    pub resource: String,
    /// Keys to take away; those that are not there are as good as taken away.
    pub tag_keys: Vec<String>,
}

/// What `UntagResource` answers: nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UntagResourceResponse {}

fn resource(input: &Input, constraints: &mut Constraints) -> String {
    input.path("Resource").required(constraints).text(constraints, &RESOURCE).unwrap_or_default()
}

impl FromInput for ListTagsRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let mut constraints = Constraints::new();
        let resource = resource(input, &mut constraints);
        constraints.finish()?;
        Ok(Self { resource })
    }
}

impl FromInput for TagResourceRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let c = &mut Constraints::new();
        let resource = resource(input, c);
        let tags = input.body("Tags").required(c).texts(c, usize::MAX, &TAG_KEY, &TAG_VALUE);
        std::mem::take(c).finish()?;
        Ok(Self { resource, tags: tags.unwrap_or_default() })
    }
}

impl FromInput for UntagResourceRequest {
    fn from_input(input: &Input) -> Result<Self, ServiceError> {
        let c = &mut Constraints::new();
        let resource = resource(input, c);
        let tag_keys = input.query("tagKeys").required(c).repeated(c, &TAG_KEY);
        std::mem::take(c).finish()?;
        Ok(Self { resource, tag_keys: tag_keys.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(keys: impl IntoIterator<Item = String>) -> Tags {
        keys.into_iter().map(|key| (key, String::new())).collect()
    }

    #[test]
    fn fifty_are_enough_and_some_are_not_for_the_caller() {
        let many = |count: usize| tags((0..count).map(|index| format!("k{index}")));
        assert_eq!(check(&many(50)), Ok(()));
        assert_eq!(check(&many(51)), Err(catalogue::too_many_tags(51, 50)));
        for key in ["aws:x", "AWS:x", "aWs:"] {
            assert_eq!(check(&tags([key.into()])), Err(catalogue::reserved_tag(key)));
        }
        assert_eq!(check(&tags(["aws".into(), "awsome:x".into(), "x:aws:".into(), "été:x".into()])), Ok(()));
    }
}
