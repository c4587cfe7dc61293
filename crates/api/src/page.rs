//! Lists, one page at a time.

use serde::{Deserialize, Serialize};

/// Most items a page can be asked to hold; the model's bound.
pub const PAGE_ITEMS_MAX: u32 = 50;

/// Which page of a list is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// How many items at most, 1 to [`PAGE_ITEMS_MAX`].
    pub max_results: Option<u32>,
    /// Where the page before ended: an opaque text a response gave.
    pub next_token: Option<String>,
}

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Page<T> {
    /// The items; a page may be empty and still not be the last.
    pub items: Vec<T>,
    /// Where the next page begins; none after the last.
    pub next_token: Option<String>,
}
