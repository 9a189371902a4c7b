//! Readers of options' values, whose errors say what is expected.

use std::str::FromStr;

/// The largest size that a graph's symbol may have.
const MOST: u64 = i32::MAX as u64;

/// The largest power of two among the numbers of workgroups that every device takes.
const MOST_WORKGROUPS: u32 = 1 << 15;

type Read<T> = Result<T, String>;

/// A whole number.
pub fn whole<T: FromStr>(text: &str) -> Read<T> {
    let number = text.trim().parse();
    number.map_err(|_| "expected a whole number, 0 or more".to_owned())
}

/// A size of batches or of contexts.
pub fn size(text: &str) -> Read<u64> {
    within(1, text)
}

/// A number of steps, perhaps none.
pub fn steps(text: &str) -> Read<u64> {
    within(0, text)
}

fn within(least: u64, text: &str) -> Read<u64> {
    let number = text.trim().parse().ok();
    let number = number.filter(|n| (least..=MOST).contains(n));
    number.ok_or_else(|| format!("expected a whole number from {least} to {MOST}"))
}

/// A number of workgroups.
pub fn grid(text: &str) -> Read<u32> {
    let number = text.trim().parse::<u32>().ok();
    let number = number.filter(|n| *n == 0 || (n.is_power_of_two() && *n <= MOST_WORKGROUPS));
    number.ok_or_else(|| format!("expected a power of two up to {MOST_WORKGROUPS}, or 0 for none"))
}

/// A number, whose range is checked later.
pub fn number(text: &str) -> Read<f32> {
    let number = text.trim().parse();
    number.map_err(|_| "expected a number".to_owned())
}

/// A length of time.
pub fn seconds(text: &str) -> Read<f64> {
    let number = text.trim().parse().ok();
    let number = number.filter(|n: &f64| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| "expected a number of seconds, 0 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_outside_their_range_are_refused() {
        assert_eq!(whole("7"), Ok(7u64));
        assert!(whole::<u64>("-1").is_err() && whole::<usize>("-1").is_err());
        assert!(whole::<u64>("").is_err());
        assert_eq!((size("1"), size("2147483647")), (Ok(1), Ok(MOST)));
        assert!(size("0").is_err() && size("2147483648").is_err());
        assert_eq!((grid("0"), grid("32768")), (Ok(0), Ok(32768)));
        assert!(grid("96").is_err() && grid("65536").is_err());
        assert_eq!(seconds("0.5"), Ok(0.5));
        for wrong in ["-1", "nan", "inf", "x"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
