//! The states of an image, its versions and its builds.
//!
//! ```text
//! image    CREATING ──► CREATED | CREATE_FAILED
//!          settled ──(update, or removal of a version)──► UPDATING ──► UPDATED | UPDATE_FAILED
//!          settled ──(delete)──► DELETING ──► (gone) | DELETE_FAILED ──(delete)──► DELETING
//! version  PENDING ──► IN_PROGRESS ──► SUCCESSFUL + ACTIVE | FAILED + INACTIVE    (what its builds make of it)
//!          built or not ──(removal)──► DELETING ──► (gone) | DELETE_FAILED ──(removal)──► DELETING
//! build    PENDING ──► IN_PROGRESS ──► SUCCESSFUL | FAILED
//! ```
//!
//! Settled: CREATED, CREATE_FAILED, UPDATED, UPDATE_FAILED. One thing at a time changes an image, so the state says what
//! a build or a removal that ends belongs to.

use api::images::{Architecture, BuildState, ImageState, VersionState, VersionStatus};

/// What can happen to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The builds of its newest version came to an end, well or not.
    Built {
        /// All of them well.
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

/// The state of a version whose builds are in these. One that fails does not end it: the others still say whether they
/// would have gone well, and a version that has ended has no build that goes on.
pub(crate) fn version_state(builds: &[BuildState]) -> VersionState {
    use BuildState as B;
    let some = |state| builds.contains(&state);
    match (some(B::Pending), some(B::InProgress), some(B::Successful), some(B::Failed)) {
        (true, false, false, false) => VersionState::Pending,
        (_, true, _, _) | (true, false, _, _) => VersionState::InProgress,
        (false, false, _, true) => VersionState::Failed,
        (false, false, true, false) => VersionState::Successful,
        // There is no version without builds.
        (false, false, false, false) => VersionState::Failed,
    }
}

/// Whether a version may be launched when its builds have brought it into this state, and what that is to its image.
pub(crate) fn after_build(version: VersionState) -> (VersionStatus, Option<Event>) {
    match version {
        VersionState::Successful => (VersionStatus::Active, Some(Event::Built { well: true })),
        VersionState::Failed => (VersionStatus::Inactive, Some(Event::Built { well: false })),
        VersionState::Pending
        | VersionState::InProgress
        | VersionState::Deleting
        | VersionState::Deleted
        | VersionState::DeleteFailed => (VersionStatus::Inactive, None),
    }
}

/// The build that a host launches a version from, which is built for these: the first that it runs.
pub(crate) fn build_to_run(host: &[Architecture], built: &[Architecture]) -> Option<Architecture> {
    host.iter().copied().find(|architecture| built.contains(architecture))
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
    }

    #[test]
    fn what_builds_make_of_a_version() {
        let mut table = String::new();
        let mut row = |builds: &[BuildState]| {
            let version = version_state(builds);
            let (status, event) = after_build(version);
            let builds = builds.iter().map(|it| it.as_str()).collect::<Vec<_>>().join(" ");
            let image = event.map_or("-".to_owned(), |event| format!("{event:?}"));
            writeln!(table, "{builds:<36}{:<12}{:<9}{image}", version.as_str(), status.as_str()).unwrap();
        };
        for &one in BuildState::ALL {
            row(&[one]);
        }
        for &one in BuildState::ALL {
            for &other in BuildState::ALL {
                row(&[one, other]);
            }
        }
        row(&[BuildState::Successful, BuildState::Failed, BuildState::Pending]);
        insta::assert_snapshot!(table);
    }

    #[test]
    fn a_host_runs_the_first_of_its_own() {
        use Architecture::{Arm64, X86_64};
        assert_eq!(build_to_run(&[X86_64], &[Arm64, X86_64]), Some(X86_64));
        assert_eq!(build_to_run(&[X86_64, Arm64], &[Arm64, X86_64]), Some(X86_64));
        assert_eq!(build_to_run(&[X86_64, Arm64], &[Arm64]), Some(Arm64));
        assert_eq!(build_to_run(&[X86_64], &[Arm64]), None);
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
