//! The operations on managed images, which are the same for everyone and never change while the daemon runs.

use api::{
    catalogue,
    error::ServiceError,
    images::{
        ListManagedMicrovmImageVersionsRequest, ListManagedMicrovmImageVersionsResponse,
        ListManagedMicrovmImagesRequest, ListManagedMicrovmImagesResponse, ManagedMicrovmImageSummary,
        ManagedMicrovmImageVersion,
    },
    page::{self, PageRequest},
};

use crate::{pages::Page, shared::Shared};

/// `ListManagedMicrovmImages`.
pub(crate) fn list(
    shared: &Shared,
    request: &ListManagedMicrovmImagesRequest,
) -> Result<ListManagedMicrovmImagesResponse, ServiceError> {
    page_of("managed images", ManagedMicrovmImageSummary::all(&shared.config.region), &request.page)
}

/// `ListManagedMicrovmImageVersions`.
pub(crate) fn list_versions(
    shared: &Shared,
    request: &ListManagedMicrovmImageVersionsRequest,
) -> Result<ListManagedMicrovmImageVersionsResponse, ServiceError> {
    let all = ManagedMicrovmImageVersion::all(&request.image, &shared.config.region, &shared.host.architectures());
    let all = all.ok_or_else(|| catalogue::unknown_managed_image(&request.image))?;
    page_of(&format!("managed versions {}", request.image), all, &request.page)
}

/// A page of a list that is all there. The last item has place 1, so that the list may grow at its front.
fn page_of<T>(list: &str, all: Vec<T>, request: &PageRequest) -> Result<page::Page<T>, ServiceError> {
    let page = Page::asked(list, request).map_err(|_| catalogue::unreadable_input())?;
    let mut items: Vec<(i64, T)> = (1..).zip(all.into_iter().rev()).collect();
    items.reverse();
    items.retain(|(place, _)| *place < page.before);
    let next_token = page.cut(list, &mut items, |(place, _)| *place);
    Ok(page::Page { items: items.into_iter().map(|(_, item)| item).collect(), next_token })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_on_one_page() {
        let (mut seen, mut next_token) = (vec![], None);
        loop {
            let request = PageRequest { max_results: Some(2), next_token };
            let page = page_of("l", vec!['a', 'b', 'c', 'd', 'e'], &request).unwrap();
            assert!(page.items.len() <= 2);
            seen.extend(page.items);
            next_token = page.next_token;
            if next_token.is_none() {
                break;
            }
        }
        assert_eq!(seen, ['a', 'b', 'c', 'd', 'e']);
    }
}
