//! Managed images: what `baseImageArn` may name, and how they are listed.
//!
//! What a guest is made of besides the app, its kernel and agent, comes with Pilotlight, and is the same under either
//! name: the one that clients of the real service already use, and our own. Versions are bare numbers in listings;
//! answers about images write them with a minor number.

use serde::{Deserialize, Serialize};

use super::{Architecture, CpuConfiguration};
use crate::{
    catalogue,
    error::ServiceError,
    page::{Page, PageRequest},
    timestamp::Timestamp,
    word::words,
};

/// A managed image and its newest version; every one from its oldest on can be built on.
struct Managed {
    name: &'static str,
    oldest: u32,
    latest: u32,
}

/// Newest first.
const MANAGED: [Managed; 2] =
    [Managed { name: "pilotlight-1", oldest: 1, latest: 1 }, Managed { name: "al2023-1", oldest: 0, latest: 1 }];

/// When they were made: the day the service was announced, 2026-06-22.
const MADE: Timestamp = Timestamp::from_unix_ms(1_782_086_400_000);

words! {
    /// What a version of a managed image is good for.
    ManagedVersionStatus {
        /// For everything.
        Available = "AVAILABLE",
        /// For everything, and soon for nothing.
        Deprecated = "DEPRECATED",
        /// For nothing.
        Recalled = "RECALLED",
    }
}

impl Managed {
    fn arn(&self, region: &str) -> String {
        format!("arn:aws:lambda:{region}:aws:microvm-image:{}", self.name)
    }

    fn of(arn: &str, region: &str) -> Option<&'static Self> {
        MANAGED.iter().find(|image| image.arn(region) == arn)
    }
}

/// ARN, in a region, of the managed image that clients of the real service name.
#[must_use]
pub fn base_image_arn(region: &str) -> String {
    MANAGED[1].arn(region)
}

/// The version of a managed image, as answers write it. Requests may write it either way.
pub(super) fn normalised_version(arn: &str, version: Option<&str>, region: &str) -> Result<String, ServiceError> {
    let error = || catalogue::unknown_base_image(arn, version);
    let image = Managed::of(arn, region).ok_or_else(error)?;
    let major = match version {
        None => image.latest,
        Some(text) => (image.oldest..=image.latest)
            .find(|major| text == major.to_string() || text == format!("{major}.0"))
            .ok_or_else(error)?,
    };
    Ok(format!("{major}.0"))
}

/// `ListManagedMicrovmImages`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListManagedMicrovmImagesRequest {
    /// Which page.
    pub page: PageRequest,
}

/// One managed image in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagedMicrovmImageSummary {
    /// Its ARN.
    pub image_arn: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

/// What `ListManagedMicrovmImages` answers.
pub type ListManagedMicrovmImagesResponse = Page<ManagedMicrovmImageSummary>;

/// `ListManagedMicrovmImageVersions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListManagedMicrovmImageVersionsRequest {
    /// The managed image, as written by the caller.
    pub image: String,
    /// Which page.
    pub page: PageRequest,
}

/// One version of a managed image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagedMicrovmImageVersion {
    /// The image's ARN.
    pub image_arn: String,
    /// The version, a bare number.
    pub image_version: String,
    /// What it is good for.
    pub status: Option<ManagedVersionStatus>,
    /// Architectures that images on it can be built for.
    pub supported_cpu_configurations: Option<Vec<CpuConfiguration>>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

/// What `ListManagedMicrovmImageVersions` answers.
pub type ListManagedMicrovmImageVersionsResponse = Page<ManagedMicrovmImageVersion>;

impl ManagedMicrovmImageSummary {
    /// Every managed image of a region, newest first.
    #[must_use]
    pub fn all(region: &str) -> Vec<Self> {
        let all = MANAGED.iter();
        all.map(|image| Self { image_arn: image.arn(region), created_at: MADE, updated_at: Some(MADE) }).collect()
    }
}

impl ManagedMicrovmImageVersion {
    /// Every version of a managed image, newest first; `None` if there is no such image. The host is what can be built
    /// for.
    #[must_use]
    pub fn all(arn: &str, region: &str, host: &[Architecture]) -> Option<Vec<Self>> {
        let image = Managed::of(arn, region)?;
        let supported: Vec<_> = host.iter().map(|&architecture| CpuConfiguration { architecture }).collect();
        let versions = (image.oldest..=image.latest).rev().map(|version| Self {
            image_arn: arn.to_owned(),
            image_version: version.to_string(),
            status: Some(ManagedVersionStatus::Available),
            supported_cpu_configurations: Some(supported.clone()),
            created_at: MADE,
            updated_at: Some(MADE),
        });
        Some(versions.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_can_be_built_on() {
        for image in ManagedMicrovmImageSummary::all("r") {
            let versions = ManagedMicrovmImageVersion::all(&image.image_arn, "r", &[Architecture::Arm64]).unwrap();
            let newest = normalised_version(&image.image_arn, None, "r").unwrap();
            assert_eq!(newest, format!("{}.0", versions[0].image_version));
            for version in versions {
                let echoed = normalised_version(&image.image_arn, Some(&version.image_version), "r").unwrap();
                assert_eq!(normalised_version(&image.image_arn, Some(&echoed), "r").unwrap(), echoed);
            }
            assert!(normalised_version(&image.image_arn, Some("2"), "r").is_err());
            assert!(ManagedMicrovmImageVersion::all(&image.image_arn, "elsewhere", &[Architecture::Arm64]).is_none());
        }
        assert_eq!(base_image_arn("r"), "arn:aws:lambda:r:aws:microvm-image:al2023-1");
    }
}
