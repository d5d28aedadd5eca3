//! Kubernetes' quantities: `500m`, `1.5`, `128Mi`, `1e9`.
//!
//! Source: kubernetes.io, "Quantity" (k8s.io/apimachinery/pkg/api/resource).

/// CPUs as billionths.
pub fn nano_cpus(text: &str) -> Option<i64> {
    whole(value(text)? * 1e9)
}

/// Bytes.
pub fn bytes(text: &str) -> Option<i64> {
    whole(value(text)?)
}

fn value(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let text = text.trim();
    let found = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = found.unwrap_or((text, 1.0));
    // Rust also reads `inf` and `nan`.
    let first = number.bytes().next()?;
    if !(first.is_ascii_digit() || first == b'.' || first == b'+') {
        return None;
    }
    Some(number.parse::<f64>().ok()? * factor)
}

fn whole(value: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "bounded here")]
    (value.is_finite() && (0.0..9e18).contains(&value)).then(|| value.round() as i64)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn kubernetes_forms() {
        for (text, nanos) in [("500m", 500_000_000), ("2", 2_000_000_000), ("0.1", 100_000_000)] {
            assert_eq!(nano_cpus(text), Some(nanos), "{text}");
        }
        for (text, size) in [("128Mi", 128 << 20), ("1G", 1_000_000_000), ("1e3", 1000), ("7", 7)] {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        for bad in ["", "x", "-1", "inf", "1X", "1 Mi x", "1e400", "Mi"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
