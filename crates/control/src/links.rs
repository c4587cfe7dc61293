//! Which images let people in by links, beyond the service: none unless configured.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The rule for every image, and for some by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Links {
    /// Whether a link, and the cookie that comes of it, opens microVMs of an image.
    pub allowed: bool,
    /// Rules of single images, by name.
    pub images: BTreeMap<String, ImageLinks>,
}

/// What is different for one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageLinks {
    /// See [`Links::allowed`].
    pub allowed: bool,
}

impl Links {
    /// Whether they open microVMs of this image.
    pub(crate) fn are_allowed(&self, image: &str) -> bool {
        self.images.get(image).map_or(self.allowed, |image| image.allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_may_differ() {
        assert!(!Links::default().are_allowed("any"));
        for all in [false, true] {
            let images = [("own".to_owned(), ImageLinks { allowed: !all })].into();
            let links = Links { allowed: all, images };
            assert_eq!((links.are_allowed("own"), links.are_allowed("other")), (!all, all));
        }
    }
}
