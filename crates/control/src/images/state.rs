//! The states of an image, its versions and its builds.
//!
//! ```text
//! image    CREATING ──► CREATED | CREATE_FAILED
//!          settled ──(update, or removal of a version)──► UPDATING ──► UPDATED | UPDATE_FAILED
//!          settled ──(delete)──► DELETING ──► (gone) | DELETE_FAILED ──(delete)──► DELETING
//! version  PENDING ──► IN_PROGRESS ──► SUCCESSFUL + ACTIVE | FAILED + INACTIVE
//!          built or not ──(removal)──► DELETING ──► (gone) | DELETE_FAILED ──(removal)──► DELETING
//! build    PENDING ──► IN_PROGRESS ──► SUCCESSFUL | FAILED
//! ```
//!
//! Settled: CREATED, CREATE_FAILED, UPDATED, UPDATE_FAILED. One thing at a time changes an image, so the state says what
//! a build or a removal that ends belongs to.

use api::images::{BuildState, ImageState, VersionState, VersionStatus};

/// What can happen to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The build of its newest version came to an end, well or not.
    Built {
        /// Well.
        well: bool,
    },
    /// Somebody asked for another version.
    UpdateStarted,
    /// Somebody asked to remove a version.
    VersionRemovalStarted,
    /// The removal of a version came to an end, well or not.
    VersionRemoved {
        /// Well.
        well: bool,
    },
    /// Somebody asked to delete it.
    DeleteStarted,
    /// What it holds could not be removed.
    DeleteFailed,
}

/// The state after an event; `None` where the event cannot happen.
pub(crate) fn next(state: ImageState, event: Event) -> Option<ImageState> {
    use ImageState as S;
    match (state, event) {
        (S::Creating, Event::Built { well: true }) => Some(S::Created),
        (S::Creating, Event::Built { well: false }) => Some(S::CreateFailed),
        (S::Updating, Event::Built { well: true } | Event::VersionRemoved { well: true }) => Some(S::Updated),
        (S::Updating, Event::Built { well: false } | Event::VersionRemoved { well: false }) => Some(S::UpdateFailed),
        (
            S::Created | S::CreateFailed | S::Updated | S::UpdateFailed,
            Event::UpdateStarted | Event::VersionRemovalStarted,
        ) => Some(S::Updating),
        // Of one that is DELETING: asked again, or begun again after a restart.
        (
            S::Created | S::CreateFailed | S::Updated | S::UpdateFailed | S::Deleting | S::DeleteFailed,
            Event::DeleteStarted,
        ) => Some(S::Deleting),
        (S::Deleting, Event::DeleteFailed) => Some(S::DeleteFailed),
        (
            S::Creating,
            Event::UpdateStarted
            | Event::VersionRemovalStarted
            | Event::VersionRemoved { well: true | false }
            | Event::DeleteStarted
            | Event::DeleteFailed,
        )
        | (
            S::Created | S::CreateFailed | S::Updated | S::UpdateFailed,
            Event::Built { well: true | false } | Event::VersionRemoved { well: true | false } | Event::DeleteFailed,
        )
        | (
            S::Updating,
            Event::UpdateStarted | Event::VersionRemovalStarted | Event::DeleteStarted | Event::DeleteFailed,
        )
        | (
            S::Deleting,
            Event::Built { well: true | false }
            | Event::UpdateStarted
            | Event::VersionRemovalStarted
            | Event::VersionRemoved { well: true | false },
        )
        | (
            S::DeleteFailed,
            Event::Built { well: true | false }
            | Event::UpdateStarted
            | Event::VersionRemovalStarted
            | Event::VersionRemoved { well: true | false }
            | Event::DeleteFailed,
        )
        | (
            // The record of an image that is gone is gone too.
            S::Deleted,
            Event::Built { well: true | false }
            | Event::UpdateStarted
            | Event::VersionRemovalStarted
            | Event::VersionRemoved { well: true | false }
            | Event::DeleteStarted
            | Event::DeleteFailed,
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

/// May this version be launched? All three must say so. An image being updated, or whose update failed, launches what
/// it had: an update costs no launch.
pub(crate) fn can_run(image: ImageState, version: VersionState, status: VersionStatus) -> bool {
    use ImageState as S;
    let image = match image {
        S::Created | S::Updating | S::Updated | S::UpdateFailed => true,
        S::Creating | S::CreateFailed | S::Deleting | S::DeleteFailed | S::Deleted => false,
    };
    image && version == VersionState::Successful && status == VersionStatus::Active
}

/// Why a version is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    /// Its image is in a state in which nothing of it can be changed.
    Busy(ImageState),
    /// It was not built, so nothing can be launched from it.
    NotBuilt,
    /// It is the only one.
    Last,
    /// MicroVMs run from it.
    InUse,
}

/// May the status of a version become this one?
pub(crate) fn may_set_status(image: ImageState, version: VersionState, status: VersionStatus) -> Result<(), Refusal> {
    if next(image, Event::UpdateStarted).is_none() {
        Err(Refusal::Busy(image))
    } else if status == VersionStatus::Active && version != VersionState::Successful {
        Err(Refusal::NotBuilt)
    } else {
        Ok(())
    }
}

/// What to do when somebody asks to remove a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Removal {
    /// Remove it; the image's state until that is done.
    Start(ImageState),
    /// It is being removed already.
    Repeated,
    /// Leave it.
    Refuse(Refusal),
}

/// Decides about the removal of a version, one of `versions` of its image, from which `alive` microVMs run.
pub(crate) fn removal(image: ImageState, version: VersionState, versions: i64, alive: i64) -> Removal {
    if version == VersionState::Deleting {
        return Removal::Repeated;
    }
    match next(image, Event::VersionRemovalStarted) {
        None => Removal::Refuse(Refusal::Busy(image)),
        Some(_) if versions <= 1 => Removal::Refuse(Refusal::Last),
        Some(_) if alive > 0 => Removal::Refuse(Refusal::InUse),
        Some(state) => Removal::Start(state),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use api::word::Word;

    use super::*;

    #[test]
    fn the_table() {
        let events = [
            Event::Built { well: true },
            Event::Built { well: false },
            Event::UpdateStarted,
            Event::VersionRemovalStarted,
            Event::VersionRemoved { well: true },
            Event::VersionRemoved { well: false },
            Event::DeleteStarted,
            Event::DeleteFailed,
        ];
        let mut table = String::new();
        for &state in ImageState::ALL {
            for event in events {
                let next = next(state, event).map_or("-", ImageState::as_str);
                writeln!(table, "{:<15}{:<32}{next}", state.as_str(), format!("{event:?}")).unwrap();
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
        assert_eq!(
            able,
            [
                "CREATED SUCCESSFUL ACTIVE",
                "UPDATING SUCCESSFUL ACTIVE",
                "UPDATED SUCCESSFUL ACTIVE",
                "UPDATE_FAILED SUCCESSFUL ACTIVE"
            ]
        );
        assert_eq!(after_build(true), (BuildState::Successful, VersionStatus::Active));
        assert_eq!(after_build(false), (BuildState::Failed, VersionStatus::Inactive));
    }

    #[test]
    fn what_may_become_of_a_version() {
        use Removal::{Refuse, Repeated, Start};
        let (built, failed) = (VersionState::Successful, VersionState::Failed);
        assert_eq!(removal(ImageState::Created, built, 2, 0), Start(ImageState::Updating));
        assert_eq!(removal(ImageState::UpdateFailed, failed, 2, 0), Start(ImageState::Updating));
        assert_eq!(removal(ImageState::UpdateFailed, VersionState::DeleteFailed, 2, 0), Start(ImageState::Updating));
        assert_eq!(removal(ImageState::Updating, VersionState::Deleting, 2, 0), Repeated);
        assert_eq!(removal(ImageState::Updating, built, 2, 1), Refuse(Refusal::Busy(ImageState::Updating)));
        assert_eq!(removal(ImageState::Created, built, 1, 1), Refuse(Refusal::Last));
        assert_eq!(removal(ImageState::Created, built, 2, 1), Refuse(Refusal::InUse));

        let (active, inactive) = (VersionStatus::Active, VersionStatus::Inactive);
        assert_eq!(may_set_status(ImageState::Updated, built, active), Ok(()));
        assert_eq!(may_set_status(ImageState::Updated, failed, inactive), Ok(()));
        assert_eq!(may_set_status(ImageState::Updated, failed, active), Err(Refusal::NotBuilt));
        for busy in [ImageState::Creating, ImageState::Updating, ImageState::Deleting, ImageState::DeleteFailed] {
            assert_eq!(may_set_status(busy, built, inactive), Err(Refusal::Busy(busy)));
        }
    }
}
