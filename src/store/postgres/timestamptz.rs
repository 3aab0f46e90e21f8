//! `timestamptz` in its wire form: microseconds since 2000. The types of the `time` crate end with
//! the year 9999, and PostgreSQL's do not: a query for a later time would ask for a different one,
//! and a row with such a time could not be read.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Type};
use time::OffsetDateTime;

use crate::model::Timestamp;

/// 2000-01-01T00:00:00Z, in microseconds since 1970.
const EPOCH: i64 = 946_684_800_000_000;
/// The range that PostgreSQL accepts: from 4714-11-24 BC to 294276-12-31, in microseconds since
/// 2000.
const FIRST: i64 = -211_813_488_000_000_000;
const LAST: i64 = 9_223_371_331_199_999_999;

/// A time as PostgreSQL writes it. `infinity` and `-infinity` are the latest and the earliest
/// [`Timestamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timestamptz(Timestamp);

impl From<Timestamp> for Timestamptz {
    fn from(at: Timestamp) -> Self {
        Self(at)
    }
}

impl From<Timestamptz> for Timestamp {
    fn from(timestamptz: Timestamptz) -> Self {
        timestamptz.0
    }
}

impl Timestamptz {
    fn to_wire(self) -> i64 {
        self.0.0.saturating_sub(EPOCH).clamp(FIRST, LAST)
    }

    fn from_wire(microseconds: i64) -> Self {
        Self(Timestamp(match microseconds {
            i64::MIN => i64::MIN,
            _ => microseconds.saturating_add(EPOCH),
        }))
    }
}

impl Type<sqlx::Postgres> for Timestamptz {
    fn type_info() -> PgTypeInfo {
        <OffsetDateTime as Type<sqlx::Postgres>>::type_info()
    }
}

impl PgHasArrayType for Timestamptz {
    fn array_type_info() -> PgTypeInfo {
        <OffsetDateTime as PgHasArrayType>::array_type_info()
    }
}

impl Encode<'_, sqlx::Postgres> for Timestamptz {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<sqlx::Postgres>::encode_by_ref(&self.to_wire(), buffer)
    }
}

impl Decode<'_, sqlx::Postgres> for Timestamptz {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        // Every statement that returns times is prepared, so they arrive in binary.
        let bytes: [u8; 8] = value.as_bytes()?.try_into()?;
        Ok(Self::from_wire(i64::from_be_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamptz_is_the_same_on_the_wire_whatever_its_year() {
        for text in ["1970-01-01T00:00:00Z", "2000-01-01T00:00:00Z", "9999-12-31T23:59:59.999999-23:59"] {
            let at = Timestamp::parse(text).unwrap();
            assert_eq!(Timestamp::from(Timestamptz::from_wire(Timestamptz(at).to_wire())), at, "{text}");
        }
        assert_eq!(Timestamptz(Timestamp::parse("2000-01-01T00:00:01Z").unwrap()).to_wire(), 1_000_000);
    }

    #[test]
    fn a_time_out_of_range_becomes_the_nearest_in_range() {
        assert_eq!(Timestamptz(Timestamp(i64::MIN)).to_wire(), FIRST);
        assert!(Timestamptz(Timestamp(i64::MAX)).to_wire() <= LAST);
        assert_eq!(Timestamp::from(Timestamptz::from_wire(i64::MAX)), Timestamp(i64::MAX));
        assert_eq!(Timestamp::from(Timestamptz::from_wire(i64::MIN)), Timestamp(i64::MIN));
    }
}
