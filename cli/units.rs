//! Numbers as people read them.

use std::time::Duration;

/// `1234567` as `1,234,567`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in decimal units, as drivers and disks count: `548.1 MB`.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, &["B", "kB", "MB", "GB", "TB"])
}

/// A number with a prefix: `rate(3.2e9, "B/s")` is `3.2 GB/s`.
pub fn rate(value: f64, unit: &str) -> String {
    const PREFIXES: [&str; 5] = ["", "k", "M", "G", "T"];
    format!("{}{unit}", scaled(value, &PREFIXES))
}

fn scaled(value: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or("");
    for next in units {
        if value < 999.95 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    let whole = value.fract() == 0.0 && value < 1000.0;
    match whole {
        true => format!("{value:.0} {unit}"),
        false => format!("{value:.1} {unit}"),
    }
}

/// A duration in the unit that fits: `3.2 µs`, `14.0 ms`, `2.51 s`.
pub fn time(duration: Duration) -> String {
    let s = duration.as_secs_f64();
    match s {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// Milliseconds with three decimals, for JSON.
pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(124_439_808), "124,439,808");
        assert_eq!(bytes(16), "16 B");
        assert_eq!(bytes(999_960), "1.0 MB");
        assert_eq!(bytes(154_389_504), "154.4 MB");
        assert_eq!(rate(3.25e9, "B/s"), "3.2 GB/s");
        assert_eq!(time(Duration::from_micros(14)), "14.0 µs");
        assert_eq!(time(Duration::from_millis(2510)), "2.51 s");
    }
}
