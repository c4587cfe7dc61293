//! Points in time, as the service writes them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// Milliseconds since the Unix epoch; on the wire, seconds as a JSON number with a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_unix_ms(unix_ms: i64) -> Self {
        Self(unix_ms)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub fn unix_ms(self) -> i64 {
        self.0
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let unix_ms = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
        };
        Self(unix_ms)
    }
}

impl Serialize for Timestamp {
    #[allow(clippy::cast_precision_loss, reason = "milliseconds of this era are far below 2^53")]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0 as f64 / 1000.0)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    #[allow(clippy::cast_possible_truncation, reason = "a cast from f64 saturates")]
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self((f64::deserialize(deserializer)? * 1000.0).round() as i64))
    }
}

/// The same, as the service writes it where it has connectors: ISO-8601, with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IsoTimestamp(pub Timestamp);

impl Serialize for IsoTimestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nanoseconds = i128::from(self.0.0) * 1_000_000;
        let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).map_err(serde::ser::Error::custom)?;
        let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        serializer.serialize_str(&time.format(form).map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for IsoTimestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(serde::de::Error::custom)?;
        let unix_ms = i64::try_from(time.unix_timestamp_nanos() / 1_000_000).map_err(serde::de::Error::custom)?;
        Ok(Self(Timestamp(unix_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::{IsoTimestamp, Timestamp};

    #[test]
    fn years_and_milliseconds() {
        let time = IsoTimestamp(Timestamp::from_unix_ms(1_785_000_000_020));
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2026-07-25T17:20:00.020Z\"");
        assert_eq!(serde_json::from_str::<IsoTimestamp>("\"2026-07-25T17:20:00.020Z\"").unwrap(), time);
    }

    #[test]
    fn seconds_with_a_fraction() {
        let time = Timestamp::from_unix_ms(1_785_000_000_123);
        assert_eq!(serde_json::to_string(&time).unwrap(), "1785000000.123");
        assert_eq!(serde_json::from_str::<Timestamp>("1785000000.123").unwrap(), time);
        assert_eq!(serde_json::to_string(&Timestamp::from_unix_ms(1000)).unwrap(), "1.0");
    }
}
