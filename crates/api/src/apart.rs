//! What the edge and the others say to each other where the edge is a process of its own: the frames, which are JSON
//! behind a length, and the traits through which the others are asked.
//!
//! The edge asks, and says which microVMs have traffic; the others answer, and say unasked when what they answered is not
//! true any more. Frames arrive in the order in which they were sent, which is what makes the edge's picture right.

use std::pin::Pin;

use serde::{Deserialize, Serialize};

use crate::{
    directory::{Behind, Directory, Unavailable},
    ids::{EndpointId, MicrovmId, VmId},
};

/// The form of these frames. Each side says its own first, and speaks to no other.
pub const FORM: u32 = 1;

/// Bytes of one frame at most.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;

/// MicroVMs named in one frame at most; each takes some hundred bytes.
pub const NAMED_MAX: usize = 256;

/// Characters of a reason at most.
pub const REASON_CHARS_MAX: usize = 1000;

/// Where a VM can be reached from another process of its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The name of its network namespace. The next VM may have it once this one is over.
    pub namespace: String,
    /// The generation of its agent, if that is known.
    pub agent: Option<u32>,
}

/// The incarnation that a microVM runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whereabouts {
    /// Which.
    pub vm: VmId,
    /// `None`: it was over before that could be told.
    pub place: Option<Place>,
}

/// What the edge asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Question {
    /// [`Directory::behind`]. Restarts the idle clock of what the edge believes to run.
    Behind {
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// [`Directory::awake`].
    Awake {
        /// The microVM.
        microvm: MicrovmId,
    },
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Answer {
    /// To [`Question::Behind`].
    Behind(Result<Option<Behind>, Unavailable>),
    /// To [`Question::Awake`].
    Awake(Result<Whereabouts, Unavailable>),
}

/// What the edge says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum FromEdge {
    /// First of all.
    Hello {
        /// [`FORM`].
        form: u32,
    },
    /// What it has streams to, or would open them to, from an earlier connection; [`NAMED_MAX`] at most.
    Held {
        /// MicroVMs and their incarnations.
        vms: Vec<(MicrovmId, VmId)>,
    },
    /// A question; many may be open.
    Ask {
        /// Its number.
        id: u64,
        /// What.
        question: Question,
    },
    /// Bytes crossed the endpoints of these; [`NAMED_MAX`] at most.
    Touch {
        /// The microVMs.
        microvms: Vec<MicrovmId>,
    },
    /// To be answered by [`ToEdge::Pong`].
    Ping,
}

/// What the edge is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum ToEdge {
    /// First of all.
    Hello {
        /// [`FORM`].
        form: u32,
    },
    /// The answer to a question.
    Answer {
        /// The question's number.
        id: u64,
        /// What.
        answer: Answer,
    },
    /// That incarnation may not be sent anything new: it is being suspended, or ends. Its streams go on for now.
    Resting {
        /// The microVM.
        microvm: MicrovmId,
        /// Its incarnation.
        vm: VmId,
    },
    /// That incarnation is no more, and its streams lead nowhere.
    Over {
        /// The microVM.
        microvm: MicrovmId,
        /// Its incarnation.
        vm: VmId,
    },
    /// To [`FromEdge::Ping`].
    Pong,
}

/// Control, as whoever keeps an edge's picture right sees it.
#[async_trait::async_trait]
pub trait Leaving: Directory {
    /// Returns once the microVM does not run as this incarnation (any more).
    async fn left(&self, microvm: &MicrovmId, vm: &VmId);
}

/// A VM that runs.
pub struct Resident {
    /// Where.
    pub place: Place,
    /// Comes once it is over.
    pub over: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// A host whose VMs another process of its machine can reach.
pub trait Residents: Send + Sync + 'static {
    /// This incarnation of a microVM; `None` if it is over.
    fn resident(&self, microvm: &MicrovmId, vm: &VmId) -> Option<Resident>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_frames_fit() {
        let held = FromEdge::Held { vms: vec![(MicrovmId::random(), VmId::random()); NAMED_MAX] };
        let reason = "\u{1}".repeat(REASON_CHARS_MAX);
        let answer = Answer::Awake(Err(Unavailable::WakeFailed { reason }));
        let told = ToEdge::Answer { id: u64::MAX, answer };
        for bytes in [serde_json::to_vec(&held).unwrap(), serde_json::to_vec(&told).unwrap()] {
            assert!(bytes.len() <= FRAME_BYTES_MAX, "{}", bytes.len());
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for bad in [r#"{"Hello":{"form":1,"more":2}}"#, r#"{"Ask":{"id":1}}"#, r#""Pang""#] {
            serde_json::from_str::<FromEdge>(bad).unwrap_err();
        }
    }
}
