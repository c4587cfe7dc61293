//! The states of an image, its versions and its builds.
//!
//! ```text
//! image    CREATING ──► CREATED | CREATE_FAILED ──► DELETING ──► (gone) | DELETE_FAILED ──► DELETING
//! version  PENDING ──► IN_PROGRESS ──► SUCCESSFUL + ACTIVE | FAILED + INACTIVE
//! build    PENDING ──► IN_PROGRESS ──► SUCCESSFUL | FAILED
//! ```

use api::images::{BuildState, ImageState, VersionState, VersionStatus};

/// What can happen to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// Its build came to an end, well or not.
    Built {
        /// Well.
        well: bool,
    },
    /// Somebody asked to delete it.
    DeleteStarted,
    /// What it holds could not be removed.
    DeleteFailed,
}

/// The state after an event; `None` where the event cannot happen. Updates are not served, so their states stay out of
/// reach.
pub(crate) fn next(state: ImageState, event: Event) -> Option<ImageState> {
    use ImageState as S;
    match (state, event) {
        (S::Creating, Event::Built { well: true }) => Some(S::Created),
        (S::Creating, Event::Built { well: false }) => Some(S::CreateFailed),
        (S::Creating, Event::DeleteStarted | Event::DeleteFailed) => None,
        (S::Created | S::CreateFailed, Event::DeleteStarted) => Some(S::Deleting),
        (S::Created | S::CreateFailed, Event::Built { well: true | false } | Event::DeleteFailed) => None,
        // Asked again, or begun again after a restart.
        (S::Deleting | S::DeleteFailed, Event::DeleteStarted) => Some(S::Deleting),
        (S::Deleting, Event::DeleteFailed) => Some(S::DeleteFailed),
        (S::Deleting, Event::Built { well: true | false }) => None,
        (S::DeleteFailed, Event::Built { well: true | false } | Event::DeleteFailed) => None,
        (
            S::Updating | S::Updated | S::UpdateFailed | S::Deleted,
            Event::Built { well: true | false } | Event::DeleteStarted | Event::DeleteFailed,
        ) => None,
    }
}

/// The state of a version whose only build is in this one.
pub(crate) fn version_state(build: BuildState) -> VersionState {
    match build {
        BuildState::Pending => VersionState::Pending,
        BuildState::InProgress => VersionState::InProgress,
        BuildState::Successful => VersionState::Successful,
        BuildState::Failed => VersionState::Failed,
    }
}

/// The build's state when it has come to an end, and whether its version may be launched.
pub(crate) fn after_build(well: bool) -> (BuildState, VersionStatus) {
    if well { (BuildState::Successful, VersionStatus::Active) } else { (BuildState::Failed, VersionStatus::Inactive) }
}

/// May this version be launched? All three must say so.
pub(crate) fn can_run(image: ImageState, version: VersionState, status: VersionStatus) -> bool {
    matches!(image, ImageState::Created | ImageState::Updated)
        && version == VersionState::Successful
        && status == VersionStatus::Active
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use api::word::Word;

    use super::*;

    #[test]
    fn the_table() {
        let events =
            [Event::Built { well: true }, Event::Built { well: false }, Event::DeleteStarted, Event::DeleteFailed];
        let mut table = String::new();
        for &state in ImageState::ALL {
            for event in events {
                let next = next(state, event).map_or("-", ImageState::as_str);
                writeln!(table, "{:<15}{:<24}{next}", state.as_str(), format!("{event:?}")).unwrap();
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn one_kind_of_version_runs() {
        let mut able = vec![];
        for &image in ImageState::ALL {
            for &version in VersionState::ALL {
                for &status in VersionStatus::ALL {
                    if can_run(image, version, status) {
                        able.push(format!("{image} {version} {status}"));
                    }
                }
            }
        }
        assert_eq!(able, ["CREATED SUCCESSFUL ACTIVE", "UPDATED SUCCESSFUL ACTIVE"]);
        assert_eq!(after_build(true), (BuildState::Successful, VersionStatus::Active));
        assert_eq!(after_build(false), (BuildState::Failed, VersionStatus::Inactive));
    }
}
