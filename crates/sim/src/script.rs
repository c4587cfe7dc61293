//! What a pretend VM does. An image's environment variables say it, so that a client alone can set up any situation.

use std::time::Duration;

use api::images::Architecture;
use serde::{Deserialize, Serialize};

/// How long things take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delays {
    /// A build, after its artifact has been fetched and unpacked.
    pub build: Duration,
    /// Each of run, suspend, resume and terminate.
    pub verb: Duration,
}

/// What an image and its microVMs do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// `SIM_BUILD_MS`: how long the build takes.
    pub build: Option<Duration>,
    /// `SIM_RUN_MS`: how long a launch takes.
    pub run: Option<Duration>,
    /// `SIM_SUSPEND_MS`.
    pub suspend: Option<Duration>,
    /// `SIM_RESUME_MS`.
    pub resume: Option<Duration>,
    /// `SIM_TERMINATE_MS`.
    pub terminate: Option<Duration>,
    /// `SIM_ENDS_AFTER_MS`: when a running microVM's app ends by itself.
    pub ends_after: Option<Duration>,
    /// `SIM_BUILD_FAILS`: the `stateReason` of the build.
    pub build_fails: Option<String>,
    /// `SIM_BUILD_FAILS_FOR`: only the build for this architecture does.
    pub build_fails_for: Option<Architecture>,
    /// `SIM_RUN_FAILS`: the reason the microVM is lost for.
    pub run_fails: Option<String>,
    /// `SIM_SUSPEND_FAILS`: the reason everything stays as it was for.
    pub suspend_fails: Option<String>,
    /// `SIM_RESUME_FAILS`: likewise.
    pub resume_fails: Option<String>,
}

impl Script {
    /// The one an image's environment tells; what names no step of ours is the app's business.
    pub fn of(environment: &[(String, String)]) -> Result<Self, String> {
        let mut script = Self::default();
        for (name, value) in environment {
            let duration = || {
                let number = value.parse().map_err(|_| format!("{name} is no number of milliseconds: {value}"))?;
                Ok::<_, String>(Some(Duration::from_millis(number)))
            };
            match name.as_str() {
                "SIM_BUILD_MS" => script.build = duration()?,
                "SIM_RUN_MS" => script.run = duration()?,
                "SIM_SUSPEND_MS" => script.suspend = duration()?,
                "SIM_RESUME_MS" => script.resume = duration()?,
                "SIM_TERMINATE_MS" => script.terminate = duration()?,
                "SIM_ENDS_AFTER_MS" => script.ends_after = duration()?,
                "SIM_BUILD_FAILS_FOR" => {
                    let architecture = value.parse().map_err(|_| format!("{name} is no architecture: {value}"))?;
                    script.build_fails_for = Some(architecture);
                }
                "SIM_BUILD_FAILS" => script.build_fails = Some(value.clone()),
                "SIM_RUN_FAILS" => script.run_fails = Some(value.clone()),
                "SIM_SUSPEND_FAILS" => script.suspend_fails = Some(value.clone()),
                "SIM_RESUME_FAILS" => script.resume_fails = Some(value.clone()),
                misspelt if misspelt.starts_with("SIM_") => return Err(format!("there is no {misspelt}")),
                _ => {}
            }
        }
        Ok(script)
    }
}
