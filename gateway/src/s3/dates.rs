//! The dates of requests: when a client says that it sent one.
//!
//! SigV4 needs `x-amz-date`; clients that sign `Date` alone get it from there. What SigV2 signs is checked here, since
//! its verifier looks at no clock.

use http::{HeaderMap, HeaderValue, header};
use s3s::{S3Error, S3Result, s3_error};

/// How far a client's clock may be off, as S3 has it.
pub(super) const SKEW_SECS_MAX: i64 = 15 * 60;
const AMZ_DATE: &str = "x-amz-date";
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

fn no_date() -> S3Error {
    s3_error!(AccessDenied, "AWS authentication requires a valid Date or x-amz-date header")
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

/// Has a request signed by SigV4 in headers carry an `x-amz-date`.
pub(super) fn complete_v4(headers: &mut HeaderMap) -> S3Result<()> {
    if let Some(date) = text(headers, AMZ_DATE) {
        return basic_seconds(date).map(drop).ok_or_else(no_date);
    }
    let date = text(headers, header::DATE.as_str()).ok_or_else(no_date)?;
    let seconds = basic_seconds(date).or_else(|| http_seconds(date)).ok_or_else(no_date)?;
    let date = HeaderValue::try_from(basic(seconds)).map_err(|_| no_date())?;
    headers.insert(AMZ_DATE, date);
    Ok(())
}

/// Refuses a request signed by SigV2 in headers that is not of now.
pub(super) fn check_v2(headers: &HeaderMap, now_seconds: i64) -> S3Result<()> {
    let date = text(headers, AMZ_DATE).or_else(|| text(headers, header::DATE.as_str()));
    let date = date.ok_or_else(no_date)?;
    let seconds = http_seconds(date).or_else(|| basic_seconds(date)).filter(|seconds| *seconds >= 0);
    let seconds = seconds.ok_or_else(no_date)?;
    if (now_seconds - seconds).abs() > SKEW_SECS_MAX {
        return Err(s3_error!(
            RequestTimeTooSkewed,
            "The difference between the request time and the current time is too large."
        ));
    }
    Ok(())
}

/// Days since the epoch of a date of the Gregorian calendar; `None`: there is no such date.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let last = match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=last).contains(&day) || !(1..=9999).contains(&year) {
        return None;
    }
    // Years that begin in March end with their leap day.
    let shifted = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let (era, in_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    Some(era * 146_097 + in_era * 365 + in_era / 4 - in_era / 100 + of_year - 719_468)
}

fn number(digits: &str) -> Option<i64> {
    let is_number = (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { digits.parse().ok() } else { None }
}

fn seconds_of_day(hour: i64, minute: i64, second: i64) -> Option<i64> {
    let is_time = hour < 24 && minute < 60 && second <= 60;
    is_time.then(|| hour * 3600 + minute * 60 + second)
}

/// Of `YYYYMMDDTHHMMSSZ`.
pub(super) fn basic_seconds(date: &str) -> Option<i64> {
    if date.len() != 16 || !date.is_ascii() || date.as_bytes()[8] != b'T' || !date.ends_with('Z') {
        return None;
    }
    let part = |from: usize, to: usize| number(&date[from..to]);
    let days = days(part(0, 4)?, part(4, 6)?, part(6, 8)?)?;
    Some(days * 86_400 + seconds_of_day(part(9, 11)?, part(11, 13)?, part(13, 15)?)?)
}

/// Of `[Tue, ]07 Jul 2026 21:53:04 GMT`, where the zone may be an offset. What day of the week it was is not asked.
fn http_seconds(date: &str) -> Option<i64> {
    let date = date.split_once(',').map_or(date, |(_, rest)| rest);
    let mut words = date.split_ascii_whitespace();
    let day = number(words.next()?)?;
    let month = words.next()?.to_ascii_lowercase();
    let month = MONTHS.iter().position(|name| *name == month)?;
    let year = number(words.next()?)?;
    let mut clock = words.next()?.split(':');
    let (hour, minute, second) =
        (number(clock.next()?)?, number(clock.next()?)?, number(clock.next().unwrap_or("0"))?);
    let offset = match words.next() {
        None | Some("GMT" | "UTC" | "Z") => 0,
        Some(zone) => {
            let (sign, digits) = zone.split_at_checked(1)?;
            let digits = Some(digits).filter(|digits| digits.len() == 4)?;
            let minutes = number(digits)? / 100 * 60 + number(digits)? % 100;
            match sign {
                "+" => minutes,
                "-" => -minutes,
                _ => return None,
            }
        }
    };
    let month = i64::try_from(month).ok()? + 1;
    let day_start = days(year, month, day)? * 86_400;
    Some(day_start + seconds_of_day(hour, minute, second)? - offset * 60)
}

/// `YYYYMMDDTHHMMSSZ`.
fn basic(seconds: i64) -> String {
    let (day, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let since_march = day + 719_468;
    let (era, of_era) = (since_march.div_euclid(146_097), since_march.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let date = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{date:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds as `date -u +%s` tells them.
    #[test]
    fn dates_are_read_as_clients_write_them() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Tue, 14 Nov 2023 22:13:20 GMT", 1_700_000_000),
            ("14 Nov 2023 22:13:20 +0000", 1_700_000_000),
            ("Tue, 14 Nov 2023 23:43:20 +0130", 1_700_000_000),
            ("Tue, 14 Nov 2023 21:13:20 -0100", 1_700_000_000),
            ("Thu, 29 Feb 2024 12:00:00 GMT", 1_709_208_000),
            ("Sun, 31 Dec 1950 23:59:59 GMT", -599_616_001),
        ] {
            assert_eq!(http_seconds(text), Some(seconds), "{text}");
            assert_eq!(basic_seconds(&basic(seconds)), Some(seconds), "{text}");
        }
        assert_eq!(basic(1_700_000_000), "20231114T221320Z");
        for bad in ["", "Bad Date", "Thu, 29 Feb 2023 12:00:00 GMT", "1 Jan 2023", "1 Jan 2023 25:00:00", "é"]
        {
            assert_eq!(http_seconds(bad), None, "{bad}");
            assert_eq!(basic_seconds(bad), None, "{bad}");
        }
        for bad in ["20231314T221320Z", "20231114 221320Z", "20231114T221320+", "2023111éT22132Z"] {
            assert_eq!(basic_seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_date_alone_becomes_the_date_that_is_signed() {
        let mut headers = HeaderMap::new();
        assert_eq!(*complete_v4(&mut headers).unwrap_err().code(), s3s::S3ErrorCode::AccessDenied);
        headers.insert(header::DATE, HeaderValue::from_static("Tue, 14 Nov 2023 22:13:20 GMT"));
        complete_v4(&mut headers).unwrap();
        assert_eq!(headers[AMZ_DATE], "20231114T221320Z");
    }

    #[test]
    fn what_sigv2_signs_must_be_of_now() {
        let code = |date: &str, now| {
            let mut headers = HeaderMap::new();
            headers.insert(header::DATE, HeaderValue::try_from(date).unwrap());
            check_v2(&headers, now).err().map(|error| error.code().as_str().to_owned())
        };
        let date = "Tue, 14 Nov 2023 22:13:20 GMT";
        assert_eq!(code(date, 1_700_000_000 + 900), None);
        assert_eq!(code(date, 1_700_000_000 + 901), Some("RequestTimeTooSkewed".into()));
        assert_eq!(code(date, 1_700_000_000 - 901), Some("RequestTimeTooSkewed".into()));
        assert_eq!(code("Sun, 31 Dec 1950 23:59:59 GMT", 1_700_000_000), Some("AccessDenied".into()));
    }
}
