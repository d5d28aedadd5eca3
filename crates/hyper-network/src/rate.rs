//! What a pod may send and receive per second, held by `tc-tbf(8)` at both ends of its link.
//!
//! ```text
//!   bridge ─► host's end ──tbf: in──► pod        pod's end ──tbf: out──► bridge
//! ```
//! What is over the rate waits for a tenth of a second at most, and is dropped then, so that TCP finds
//! the rate. The guest reaches neither end: what it sends arrives at the pod's by redirection.

use std::fmt;
use std::str::FromStr;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcHeader, TcMessage, TcOption};
use serde::{Deserialize, Serialize};

use crate::Netlink;
use crate::error::{NetworkError, Result, link};

/// Attributes and constants of linux/pkt_sched.h.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// Parent of a link's own queueing.
const TC_H_ROOT: TcHandle = TcHandle { major: 0xffff, minor: 0xffff };

/// A batch of segments that is sent as one passes whole.
const LEAST_BURST: u64 = 64 << 10;
/// Less is no network.
const LEAST: u64 = 8_000;

/// Bits per second each way; `None`: no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// To the pod.
    #[serde(rename = "in")]
    pub inward: Option<u64>,
    /// From the pod.
    #[serde(rename = "out")]
    pub outward: Option<u64>,
}

impl FromStr for Rates {
    type Err = NetworkError;

    /// `in=RATE`, `out=RATE`, or both with a comma; a rate is a number of bits per second, with k, m or
    /// g for thousands, millions, milliards. Empty: none.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |part: &str, why: &str| {
            NetworkError::Unavailable(format!("network rate `{text}`: `{part}` {why}"))
        };
        let mut rates = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let way = match part.split_once('=') {
                Some(("in", rate)) => (&mut rates.inward, rate),
                Some(("out", rate)) => (&mut rates.outward, rate),
                _ => return Err(bad(part, "is neither in=RATE nor out=RATE")),
            };
            let bits = bits(way.1).filter(|bits| *bits >= LEAST);
            let bits =
                bits.ok_or_else(|| bad(part, "is no rate from 8k bits per second: 10m, 1g"))?;
            if way.0.replace(bits).is_some() {
                return Err(bad(part, "is said twice"));
            }
        }
        Ok(rates)
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways = [("in", self.inward), ("out", self.outward)];
        let said: Vec<String> = ways
            .iter()
            .filter_map(|(way, bits)| bits.map(|bits| format!("{way}={bits}")))
            .collect();
        out.write_str(&said.join(","))
    }
}

fn bits(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &lower[number.len()..] {
        "" | "bit" => 1,
        "k" | "kbit" => 1_000,
        "m" | "mbit" => 1_000_000,
        "g" | "gbit" => 1_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

impl Netlink {
    /// Bounds what leaves by the link `index`, in bits per second; `None`: no more. Fine to repeat.
    ///
    /// # Errors
    /// The kernel's: it lacks `sch_tbf`.
    pub fn bound(&mut self, index: u32, bits: Option<u64>) -> Result<()> {
        let header =
            TcHeader { index: index.cast_signed(), parent: TC_H_ROOT, ..TcHeader::default() };
        let Some(bits) = bits else {
            let message = TcMessage::from_parts(header, Vec::new());
            return match self.change(RouteNetlinkMessage::DelQueueDiscipline(message), 0) {
                // There is none.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                    Ok(())
                }
                done => done.map_err(link("unbound link", &index.to_string())),
            };
        };
        let options = tbf(bits / 8).into_iter().map(TcOption::Other).collect();
        let message = TcMessage::from_parts(
            header,
            vec![TcAttribute::Kind("tbf".to_owned()), TcAttribute::Options(options)],
        );
        self.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(link("bound link", &index.to_string()))
    }
}

/// `struct tc_tbf_qopt` and what is beside it, for `rate` bytes per second.
fn tbf(rate: u64) -> [DefaultNla; 3] {
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    // A fiftieth of a second's, so that coarse timers do not slow it.
    let burst = LEAST_BURST.max(rate / 50);
    let waiting = narrow((burst + rate / 10).max(2 * LEAST_BURST));
    let mut options = Vec::with_capacity(36);
    // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate; 0 is in RATE64.
    options.extend([0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
    options.extend(narrow(rate).to_ne_bytes());
    // No peak rate.
    options.extend([0; 12]);
    options.extend(waiting.to_ne_bytes());
    // Buffer in ticks and MTU: the burst in bytes says both.
    options.extend([0; 8]);
    [
        DefaultNla::new(TCA_TBF_PARMS, options),
        DefaultNla::new(TCA_TBF_RATE64, rate.to_ne_bytes().to_vec()),
        DefaultNla::new(TCA_TBF_BURST, narrow(burst).to_ne_bytes().to_vec()),
    ]
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn rates_are_read_and_bad_ones_named() {
        let read = |text: &str| text.parse::<Rates>();
        let both = read("in=10m,out=512kbit").unwrap();
        assert_eq!(both, Rates { inward: Some(10_000_000), outward: Some(512_000) });
        assert_eq!(both.to_string().parse::<Rates>().unwrap(), both);
        assert_eq!(read("out=1g").unwrap().inward, None);
        assert_eq!(read("").unwrap(), Rates::default());
        for bad in ["10m", "in=fast", "in=1", "in=1m,in=2m", "in=99999999999g", "up=1m"] {
            assert!(read(bad).unwrap_err().to_string().contains(bad), "{bad}");
        }
    }

    #[test]
    fn the_kernels_structure_has_its_length() {
        use netlink_packet_core::Nla as _;
        let [options, rate, burst] = tbf(1_250_000);
        assert_eq!([options.value_len(), rate.value_len(), burst.value_len()], [36, 8, 4]);
    }
}
