//! The states of a connector and of its versions.
//!
//! ```text
//! connector  PENDING ──► ACTIVE | FAILED ; ACTIVE | INACTIVE | FAILED ──► DELETING ──► (gone) | DELETE_FAILED ──► DELETING
//! update     – ──► InProgress ──► Successful | Failed, while the connector stays ACTIVE
//! version    PENDING ──► ACTIVE | FAILED ──► DELETING ──► (gone)
//! ```

use api::connectors::{LastUpdateStatus as Update, NetworkConnectorState as State};

/// What can happen to a connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// Its newest version was made, well or not.
    Made {
        /// Well.
        well: bool,
    },
    /// Somebody asked for another version.
    UpdateStarted,
    /// Somebody asked to delete it.
    DeleteStarted,
    /// It could not be removed.
    DeleteFailed,
}

/// State and update after an event; `None` where the event cannot happen. Nothing here makes a connector INACTIVE, which
/// the service does to those that are not used for long.
pub(crate) fn next(state: State, update: Option<Update>, event: Event) -> Option<(State, Option<Update>)> {
    let updating = match update {
        Some(Update::InProgress) => true,
        Some(Update::Successful | Update::Failed) | None => false,
    };
    match (state, event) {
        (State::Pending, Event::Made { well: true }) => Some((State::Active, update)),
        (State::Pending, Event::Made { well: false }) => Some((State::Failed, update)),
        (State::Pending, Event::UpdateStarted | Event::DeleteStarted | Event::DeleteFailed) => None,
        (State::Active, Event::Made { well }) if updating => {
            Some((State::Active, Some(if well { Update::Successful } else { Update::Failed })))
        }
        (State::Active, Event::UpdateStarted) if !updating => Some((State::Active, Some(Update::InProgress))),
        (State::Active, Event::DeleteStarted) if !updating => Some((State::Deleting, update)),
        (
            State::Active,
            Event::Made { well: true | false } | Event::UpdateStarted | Event::DeleteStarted | Event::DeleteFailed,
        ) => None,
        // Asked again, or begun again after a restart, too.
        (State::Inactive | State::Failed | State::Deleting | State::DeleteFailed, Event::DeleteStarted) => {
            Some((State::Deleting, update))
        }
        (State::Deleting, Event::DeleteFailed) => Some((State::DeleteFailed, update)),
        (State::Deleting, Event::Made { well: true | false } | Event::UpdateStarted) => None,
        (
            State::Inactive | State::Failed | State::DeleteFailed,
            Event::Made { well: true | false } | Event::UpdateStarted | Event::DeleteFailed,
        ) => None,
    }
}

/// The state of a version that was made, well or not.
pub(crate) fn made(well: bool) -> State {
    if well { State::Active } else { State::Failed }
}

/// May a version go by itself? Not the newest, not the one in force; one that is going already goes on.
pub(crate) fn may_leave(version: u64, newest: u64, in_force: Option<u64>) -> bool {
    version != newest && in_force != Some(version)
}

/// May microVMs be given this version of a connector in this state?
pub(crate) fn can_be_used(connector: State, version: State) -> bool {
    connector == State::Active && version == State::Active
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use api::word::Word;

    use super::*;

    #[test]
    fn the_table() {
        let events = [
            Event::Made { well: true },
            Event::Made { well: false },
            Event::UpdateStarted,
            Event::DeleteStarted,
            Event::DeleteFailed,
        ];
        let updates = [None, Some(Update::InProgress), Some(Update::Successful), Some(Update::Failed)];
        let shown = |update: Option<Update>| update.map_or("-", Update::as_str);
        let mut table = String::new();
        for &state in State::ALL {
            for update in updates {
                for event in events {
                    let next = next(state, update, event)
                        .map_or("-".to_owned(), |(state, update)| format!("{:<14}{}", state.as_str(), shown(update)));
                    let event = format!("{event:?}");
                    writeln!(table, "{:<14}{:<12}{event:<22}{next}", state.as_str(), shown(update)).unwrap();
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn only_history_leaves_by_itself() {
        assert!(may_leave(1, 3, Some(2)));
        assert!(!may_leave(2, 3, Some(2)), "in force while the newest failed");
        assert!(!may_leave(3, 3, Some(2)));
        assert!(!may_leave(1, 1, None));
    }

    #[test]
    fn one_kind_is_used() {
        for &connector in State::ALL {
            for &version in State::ALL {
                let active = (connector, version) == (State::Active, State::Active);
                assert_eq!(can_be_used(connector, version), active);
            }
        }
    }
}
