//! Lists in pages. Every list goes from the newest to the oldest, and a page ends at a place in the order of creation:
//! what is made meanwhile comes before the first page, and what is removed leaves a gap, so no page repeats or skips.

use api::page::{PAGE_ITEMS_MAX, PageRequest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Longest token that is looked at, in bytes. Ours are shorter, whatever a list is filtered by.
const TOKEN_BYTES_MAX: usize = 256;

/// Where a page starts and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    /// Only what is older than this place in the order.
    pub(crate) before: i64,
    /// Items at most.
    pub(crate) limit: u32,
}

/// A text that is not a token of this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no list gave out this token")]
pub(crate) struct BadToken;

#[derive(Serialize, Deserialize)]
struct Token {
    /// Form of this token.
    v: u8,
    /// Digest of the list it belongs to, with what it is filtered by: a filter may be longer than a token should be.
    list: String,
    before: i64,
}

const FORM: u8 = 2;

/// 128 bits: enough to tell lists apart, and nothing is protected by them.
fn digest(list: &str) -> String {
    hex::encode(&Sha256::digest(list)[..16])
}

impl Page {
    /// The page that a request asks for; as long as can be if it does not say. `list` names the list and its filters:
    /// a token of another is refused.
    pub(crate) fn asked(list: &str, request: &PageRequest) -> Result<Self, BadToken> {
        Self::asked_up_to(list, request, PAGE_ITEMS_MAX)
    }

    /// The same for a list whose pages may be of another length.
    pub(crate) fn asked_up_to(list: &str, request: &PageRequest, max: u32) -> Result<Self, BadToken> {
        let limit = request.max_results.unwrap_or(max).clamp(1, max);
        let Some(token) = &request.next_token else {
            return Ok(Self { before: i64::MAX, limit });
        };
        if token.len() > TOKEN_BYTES_MAX {
            return Err(BadToken);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| BadToken)?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| BadToken)?;
        if token.v != FORM || token.list != digest(list) {
            return Err(BadToken);
        }
        Ok(Self { before: token.before, limit })
    }

    /// How many to fetch: one more than the page holds shows whether there is another.
    pub(crate) fn fetch(&self) -> u32 {
        self.limit + 1
    }

    /// Cuts what was fetched to the page; answers the token of the next one, if there is one.
    pub(crate) fn cut<T>(&self, list: &str, items: &mut Vec<T>, place: impl Fn(&T) -> i64) -> Option<String> {
        let limit = self.limit as usize;
        if items.len() <= limit {
            return None;
        }
        items.truncate(limit);
        let token = Token { v: FORM, list: digest(list), before: place(items.last()?) };
        Some(URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("a token is plain data")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(max_results: Option<u32>, next_token: Option<String>) -> PageRequest {
        PageRequest { max_results, next_token }
    }

    /// A table as the database is one: newest first, older than `before`, at most `limit`.
    fn fetch(table: &[i64], page: &Page) -> Vec<i64> {
        let mut items: Vec<_> = table.iter().copied().filter(|&place| place < page.before).collect();
        items.sort_unstable_by(|a, b| b.cmp(a));
        items.truncate(page.fetch() as usize);
        items
    }

    proptest! {
        /// Whatever is made or removed between two pages: what was there from first to last is listed once.
        #[test]
        fn what_stays_is_listed_once(
            count in 0i64..200,
            limit in 1u32..60,
            changes in proptest::collection::vec((any::<bool>(), 0i64..400), 0..100),
        ) {
            let mut table: Vec<i64> = (0..count).collect();
            let mut removed = vec![];
            let mut newest = count;
            let mut changes = changes.into_iter();
            let (mut seen, mut token) = (vec![], None::<String>);
            loop {
                let page = Page::asked("l", &request(Some(limit), token)).unwrap();
                let mut items = fetch(&table, &page);
                token = page.cut("l", &mut items, |&place| place);
                prop_assert!(items.len() <= PAGE_ITEMS_MAX.min(limit) as usize);
                seen.extend(items);
                if token.is_none() {
                    break;
                }
                for (insert, place) in changes.by_ref().take(3) {
                    if insert {
                        table.push(newest);
                        newest += 1;
                    } else if let Some(index) = table.iter().position(|&here| here == place) {
                        removed.push(table.remove(index));
                    }
                }
            }
            prop_assert!(seen.windows(2).all(|pair| pair[0] > pair[1]), "in order and never twice");
            for place in (0..count).filter(|place| !removed.contains(place)) {
                prop_assert!(seen.contains(&place), "{place} was skipped");
            }
        }

        /// A filter may have 2048 characters; the token of the next page must be taken all the same.
        #[test]
        fn any_filter_can_be_paged(filter in ".{0,2048}") {
            let page = Page::asked(&filter, &request(Some(1), None)).unwrap();
            let token = page.cut(&filter, &mut vec![7, 6], |&place| place);
            prop_assert_eq!(Page::asked(&filter, &request(Some(1), token)), Ok(Page { before: 7, limit: 1 }));
        }

        #[test]
        fn any_text_is_refused_without_panic(text in ".{0,200}") {
            prop_assert_eq!(Page::asked("l", &request(None, Some(text))), Err(BadToken));
        }
    }

    #[test]
    fn a_token_is_good_for_its_own_list_only() {
        let page = Page::asked("a", &request(Some(1), None)).unwrap();
        let token = page.cut("a", &mut vec![7, 6], |&place| place).unwrap();
        assert_eq!(Page::asked("a", &request(Some(1), Some(token.clone()))), Ok(Page { before: 7, limit: 1 }));
        assert_eq!(Page::asked("b", &request(Some(1), Some(token.clone()))), Err(BadToken));
        assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
    }
}
