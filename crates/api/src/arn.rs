//! Amazon Resource Names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{catalogue, error::ServiceError};

/// A name cut at its first five colons; nothing about the parts is checked but that there is a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arn<'a> {
    /// Such as `aws`.
    pub partition: &'a str,
    /// Such as `lambda`.
    pub service: &'a str,
    /// Such as `us-east-1`.
    pub region: &'a str,
    /// Twelve digits, or the word `aws` for what AWS owns.
    pub account: &'a str,
    /// All the rest.
    pub resource: &'a str,
}

/// What is wrong with a text that should have been an ARN; the sentences are those of AWS's own parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseArnError {
    /// It begins otherwise.
    #[error("Malformed ARN - doesn't start with 'arn:'")]
    Prefix,
    /// It ends before the partition does.
    #[error("Malformed ARN - no AWS partition specified")]
    Partition,
    /// It ends before the service does.
    #[error("Malformed ARN - no service specified")]
    Service,
    /// It ends before the region does.
    #[error("Malformed ARN - no AWS region partition specified")]
    Region,
    /// It ends before the account does.
    #[error("Malformed ARN - no AWS account specified")]
    Account,
    /// It ends after the account.
    #[error("Malformed ARN - no resource specified")]
    Resource,
}

impl<'a> Arn<'a> {
    /// Cuts a text.
    pub fn parse(text: &'a str) -> Result<Self, ParseArnError> {
        let rest = text.strip_prefix("arn:").ok_or(ParseArnError::Prefix)?;
        let (partition, rest) = rest.split_once(':').ok_or(ParseArnError::Partition)?;
        let (service, rest) = rest.split_once(':').ok_or(ParseArnError::Service)?;
        let (region, rest) = rest.split_once(':').ok_or(ParseArnError::Region)?;
        let (account, resource) = rest.split_once(':').ok_or(ParseArnError::Account)?;
        if resource.is_empty() {
            return Err(ParseArnError::Resource);
        }
        Ok(Self { partition, service, region, account, resource })
    }
}

/// An image: `arn:{partition}:lambda:{region}:{account}:microvm-image:{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageArn {
    /// Such as `aws`.
    pub partition: String,
    /// Such as `us-east-1`.
    pub region: String,
    /// Twelve digits, or `aws` for managed images.
    pub account: String,
    /// The image's name.
    pub name: String,
}

const IMAGE_RESOURCE: &str = "microvm-image";

/// A text that is not the ARN of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not the ARN of an image")]
pub struct ParseImageArnError {
    /// What was given.
    pub text: String,
}

impl ImageArn {
    /// The ARN of an image of an account.
    #[must_use]
    pub fn new(region: &str, account: &str, name: &str) -> Self {
        Self { partition: "aws".into(), region: region.into(), account: account.into(), name: name.into() }
    }

    /// Reads the identifier of an image operation. The service takes ARNs only, although its documents say names and
    /// ids too; a slash before the name is refused as something that may not be touched, as recorded.
    pub fn of_image_operation(identifier: &str) -> Result<Self, ServiceError> {
        if is_slashed(identifier) {
            return Err(ServiceError::AccessDenied { message: None });
        }
        identifier.parse().map_err(|_| catalogue::invalid_image_arn(identifier))
    }

    /// Reads the identifier of `RunMicrovm`, which words its refusals differently.
    pub fn of_run_operation(identifier: &str) -> Result<Self, ServiceError> {
        if is_slashed(identifier) {
            return Err(ServiceError::AccessDenied { message: None });
        }
        Arn::parse(identifier).map_err(catalogue::malformed_arn)?;
        Self::of_image_operation(identifier)
    }
}

fn is_slashed(identifier: &str) -> bool {
    Arn::parse(identifier).is_ok_and(|arn| {
        arn.service == "lambda" && arn.resource.strip_prefix(IMAGE_RESOURCE).is_some_and(|rest| rest.starts_with('/'))
    })
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

impl FromStr for ImageArn {
    type Err = ParseImageArnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseImageArnError { text: text.chars().take(300).collect() };
        let arn = Arn::parse(text).map_err(|_| error())?;
        let (kind, name) = arn.resource.split_once(':').ok_or_else(error)?;
        let name_fits = (1..=64).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        let account_fits =
            arn.account == "aws" || (arn.account.len() == 12 && arn.account.bytes().all(|b| b.is_ascii_digit()));
        if arn.service != "lambda"
            || kind != IMAGE_RESOURCE
            || !name_fits
            || !account_fits
            || !is_token(arn.partition)
            || !is_token(arn.region)
        {
            return Err(error());
        }
        Ok(Self {
            partition: arn.partition.into(),
            region: arn.region.into(),
            account: arn.account.into(),
            name: name.into(),
        })
    }
}

impl fmt::Display for ImageArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, region, account, name } = self;
        write!(f, "arn:{partition}:lambda:{region}:{account}:{IMAGE_RESOURCE}:{name}")
    }
}

impl TryFrom<String> for ImageArn {
    type Error = ParseImageArnError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ImageArn> for String {
    fn from(arn: ImageArn) -> String {
        arn.to_string()
    }
}
