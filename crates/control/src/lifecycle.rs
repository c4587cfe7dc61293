//! What goes beyond the service's rules about the lives of microVMs: off unless configured, for all images or for some.

use std::collections::BTreeMap;

use api::microvms::MAXIMUM_DURATION_SECONDS;
use serde::{Deserialize, Serialize};

/// A year; what is to live longer is no microVM.
const LONGEST_SECONDS_MAX: u32 = 31_536_000;

/// Most that 64 processors can use.
const CPU_PERCENT_MAX: u32 = 6400;

/// The rules for every image, and for some by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lifecycle {
    /// Longest `maximumDurationInSeconds` and `maxIdleDurationSeconds` that are taken, in seconds.
    pub maximum_duration_seconds: u32,
    /// Whether a microVM at work counts as active although nobody talks to it.
    pub work_keeps_awake: bool,
    /// Processor time of its VMM that counts as work, in percent of one processor.
    pub work_cpu_percent: u32,
    /// Bytes a second between it and other machines, both ways, that count as work.
    pub work_network_bytes_per_second: u64,
    /// Rules of single images, by name; what one leaves out is as above.
    pub images: BTreeMap<String, ImageLifecycle>,
}

/// What is different for one image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageLifecycle {
    /// See [`Lifecycle::maximum_duration_seconds`].
    pub maximum_duration_seconds: Option<u32>,
    /// See [`Lifecycle::work_keeps_awake`].
    pub work_keeps_awake: Option<bool>,
    /// See [`Lifecycle::work_cpu_percent`].
    pub work_cpu_percent: Option<u32>,
    /// See [`Lifecycle::work_network_bytes_per_second`].
    pub work_network_bytes_per_second: Option<u64>,
}

/// What counts as work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    /// Percent of one processor.
    pub(crate) cpu_percent: u32,
    /// Bytes a second.
    pub(crate) network_bytes_per_second: u64,
}

impl Default for Lifecycle {
    /// The service's rules. An idle guest with a web server was seen to take half a percent of a processor when it is
    /// emulated, and some 10 % on a busy machine; and at most 200 bytes a second of what networks say to themselves. The
    /// thresholds are well above both.
    fn default() -> Self {
        Self {
            maximum_duration_seconds: MAXIMUM_DURATION_SECONDS,
            work_keeps_awake: false,
            work_cpu_percent: 25,
            work_network_bytes_per_second: 1000,
            images: BTreeMap::new(),
        }
    }
}

/// A rule that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {value}; it must be from {min} to {max}")]
pub struct LifecycleError {
    /// The key, with the tables it is in.
    pub key: String,
    /// What it was set to.
    pub value: u64,
    /// Least it may be.
    pub min: u64,
    /// Most it may be.
    pub max: u64,
}

impl Lifecycle {
    /// Refuses what cannot be meant.
    pub fn check(&self) -> Result<(), LifecycleError> {
        let all = ImageLifecycle {
            maximum_duration_seconds: Some(self.maximum_duration_seconds),
            work_keeps_awake: None,
            work_cpu_percent: Some(self.work_cpu_percent),
            work_network_bytes_per_second: Some(self.work_network_bytes_per_second),
        };
        check("lifecycle", &all)?;
        self.images.iter().try_for_each(|(name, image)| check(&format!("lifecycle.images.{name}"), image))
    }

    /// Longest life of microVMs of an image, in seconds.
    pub(crate) fn longest_s(&self, image: &str) -> u32 {
        let own = self.images.get(image).and_then(|image| image.maximum_duration_seconds);
        own.unwrap_or(self.maximum_duration_seconds)
    }

    /// Longest life of any.
    pub(crate) fn longest_of_all_s(&self) -> u32 {
        let of_images = self.images.values().filter_map(|image| image.maximum_duration_seconds);
        of_images.chain([self.maximum_duration_seconds]).max().unwrap_or(MAXIMUM_DURATION_SECONDS)
    }

    /// What keeps microVMs of an image awake, if anything but requests does.
    pub(crate) fn work(&self, image: &str) -> Option<Work> {
        let own = self.images.get(image).cloned().unwrap_or_default();
        own.work_keeps_awake.unwrap_or(self.work_keeps_awake).then(|| Work {
            cpu_percent: own.work_cpu_percent.unwrap_or(self.work_cpu_percent),
            network_bytes_per_second: own.work_network_bytes_per_second.unwrap_or(self.work_network_bytes_per_second),
        })
    }
}

fn check(table: &str, rules: &ImageLifecycle) -> Result<(), LifecycleError> {
    let bounds = [
        (
            "maximum_duration_seconds",
            rules.maximum_duration_seconds.map(u64::from),
            // Shorter would refuse what every client takes for granted.
            MAXIMUM_DURATION_SECONDS.into(),
            LONGEST_SECONDS_MAX.into(),
        ),
        ("work_cpu_percent", rules.work_cpu_percent.map(u64::from), 1, CPU_PERCENT_MAX.into()),
        ("work_network_bytes_per_second", rules.work_network_bytes_per_second, 1, u64::from(u32::MAX)),
    ];
    for (name, value, min, max) in bounds {
        if let Some(value) = value.filter(|value| !(min..=max).contains(value)) {
            return Err(LifecycleError { key: format!("{table}.{name}"), value, min, max });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_may_differ_in_some_of_it() {
        let agent = ImageLifecycle {
            maximum_duration_seconds: Some(100_000),
            work_keeps_awake: Some(true),
            work_cpu_percent: Some(50),
            ..ImageLifecycle::default()
        };
        let rules = Lifecycle { images: [("agent".to_owned(), agent)].into(), ..Lifecycle::default() };
        rules.check().unwrap();
        assert_eq!(
            (rules.longest_s("agent"), rules.longest_s("other"), rules.longest_of_all_s()),
            (100_000, 28_800, 100_000)
        );
        assert_eq!(rules.work("other"), None);
        assert_eq!(rules.work("agent"), Some(Work { cpu_percent: 50, network_bytes_per_second: 1000 }));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        let of_image =
            |image: ImageLifecycle| Lifecycle { images: [("agent".to_owned(), image)].into(), ..Lifecycle::default() };
        for (rules, key) in [
            (
                Lifecycle { maximum_duration_seconds: 28_799, ..Lifecycle::default() },
                "lifecycle.maximum_duration_seconds",
            ),
            (Lifecycle { work_cpu_percent: 0, ..Lifecycle::default() }, "lifecycle.work_cpu_percent"),
            (
                of_image(ImageLifecycle { work_network_bytes_per_second: Some(0), ..ImageLifecycle::default() }),
                "lifecycle.images.agent.work_network_bytes_per_second",
            ),
            (
                of_image(ImageLifecycle { maximum_duration_seconds: Some(u32::MAX), ..ImageLifecycle::default() }),
                "lifecycle.images.agent.maximum_duration_seconds",
            ),
        ] {
            assert_eq!(rules.check().unwrap_err().key, key);
        }
        assert_eq!(Lifecycle::default().check(), Ok(()));
    }
}
