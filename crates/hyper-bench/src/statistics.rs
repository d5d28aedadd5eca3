//! Medians, quantiles and ratios of small samples.

/// Five figures of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub n: usize,
    pub min: f64,
    /// Lower quartile, linear between neighbours.
    pub low: f64,
    pub median: f64,
    /// Upper quartile.
    pub high: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of no values. Values that are not finite are left out.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let sorted = sorted(values);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self {
            n: sorted.len(),
            min,
            low: between(&sorted, 0.25)?,
            median: between(&sorted, 0.5)?,
            high: between(&sorted, 0.75)?,
            max,
        })
    }

    /// Where the values lie: the quartiles, or all of fewer than five values, whose quartiles say little.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        if self.n < 5 { (self.min, self.max) } else { (self.low, self.high) }
    }

    /// Whether the ranges of both lie apart, so that a difference is more than noise.
    #[must_use]
    pub fn apart(&self, other: &Self) -> bool {
        let (a, b) = (self.range(), other.range());
        a.0 > b.1 || b.0 > a.1
    }
}

/// Finite values in order.
#[must_use]
pub fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Nearest-rank quantile of sorted values, as it is usual for latencies: a value that was seen.
#[must_use]
pub fn nearest_rank(sorted: &[f64], q: f64) -> Option<f64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a small list"
    )]
    let rank = ((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(rank - 1).copied()
}

/// Quantile of sorted values, linear between neighbours.
fn between(sorted: &[f64], q: f64) -> Option<f64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a small list"
    )]
    let (below, part) = {
        let place = sorted.len().saturating_sub(1) as f64 * q;
        (place.floor() as usize, place.fract())
    };
    let low = *sorted.get(below)?;
    let high = sorted.get(below + 1).copied().unwrap_or(low);
    Some(low + (high - low) * part)
}

/// The middle of ratios: their product's root. `None` of none or of one that is not positive.
#[must_use]
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite() || *value <= 0.0) {
        return None;
    }
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let count = values.len() as f64;
    Some((values.iter().map(|value| value.ln()).sum::<f64>() / count).exp())
}

#[cfg(test)]
mod test {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn quartiles_are_linear_and_ranks_are_values() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0, f64::NAN, f64::INFINITY]).unwrap();
        assert_eq!(spread.n, 4);
        assert!(near(spread.median, 2.5) && near(spread.low, 1.75) && near(spread.high, 3.25));
        assert!(near(spread.min, 1.0) && near(spread.max, 4.0));
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(nearest_rank(&hundred, 0.99), Some(99.0));
        assert_eq!(nearest_rank(&hundred, 0.5), Some(50.0));
        assert_eq!(nearest_rank(&[], 0.5), None);
        assert_eq!(Spread::of([f64::NAN]), None);
        assert!(near(Spread::of([7.0]).unwrap().high, 7.0));
    }

    #[test]
    fn differences_inside_the_spread_are_not_told_apart() {
        let of = |values: &[f64]| Spread::of(values.iter().copied()).unwrap();
        assert!(!of(&[1.0, 2.0, 3.0, 4.0]).apart(&of(&[2.0, 3.0, 4.0, 5.0])));
        assert!(of(&[1.0, 1.1, 1.2]).apart(&of(&[2.0, 2.1, 2.2])));
        assert!(!of(&[1.0, 1.1, 9.0]).apart(&of(&[5.0])), "few values have only their range");
        let six = [1.0, 2.0, 2.0, 2.0, 2.0, 9.0];
        assert!(of(&six).apart(&of(&[5.0; 6])), "of many an outlier does not count");
    }

    #[test]
    fn ratios_are_averaged_by_product() {
        assert!(near(geometric_mean(&[0.5, 2.0]).unwrap(), 1.0));
        assert_eq!(geometric_mean(&[]), None);
        assert_eq!(geometric_mean(&[1.0, 0.0]), None);
    }
}
