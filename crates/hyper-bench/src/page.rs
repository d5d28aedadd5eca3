//! The study as one HTML page that needs nothing else: no network, no font, no script from elsewhere.
//!
//! Invariants
//! - Every text that is not this crate's own is escaped; the page's policy allows no request to anywhere.
//! - What a chart shows stands in a table, too.

mod charts;
mod sections;

use crate::results::Results;

use charts::Chart;

/// Chart.js 4.6.1, as it is in the npm registry (sha256 87364cc2b2a76a6684929e7d6b80b18a897794db38400caff1fcf1791c6925d2).
const LIBRARY: &str = include_str!("../assets/chart-4.6.1.umd.min.js");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The page.
#[must_use]
pub fn html(results: &Results) -> String {
    let mut charts = Vec::new();
    let body = sections::all(results, &mut charts);
    let names = results.study.subjects.iter().map(|subject| &subject.name);
    let data = serde_json::json!({ "subjects": names.collect::<Vec<_>>(), "charts": charts });
    // A source map would be asked for elsewhere.
    let library = LIBRARY.split("//# sourceMappingURL").next().unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <title>Isolations compared</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n\
         <script type=\"application/json\" id=\"study\">{}</script>\n<script>{library}</script>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        inert(&data.to_string())
    )
}

/// Text as HTML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// JSON as it may stand in a script element: nothing in it ends the element.
fn inert(json: &str) -> String {
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// Adds a chart and gives its figure.
fn figure(title: &str, note: &str, wide: bool, chart: Chart, all: &mut Vec<Chart>) -> String {
    let id = match &chart {
        Chart::Bars { id, .. } | Chart::Lines { id, .. } | Chart::Stack { id, .. } => id.clone(),
    };
    all.push(chart);
    let class = if wide { " class=\"wide\"" } else { "" };
    let (title, note) = (escaped(title), escaped(note));
    format!(
        "<figure{class}><figcaption>{title} <small>{note}</small></figcaption><div class=\"canvas\">\
         <canvas id=\"chart-{id}\" role=\"img\" aria-label=\"{title}; the figures are in the table below\"></canvas></div></figure>\n"
    )
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::summary::test::sample_results;

    #[test]
    fn nothing_of_what_was_measured_is_markup() {
        let page = html(&sample_results());
        for raw in ["<img src=x", "<b>Z80</b>", "not <installed>", "1 <beta>"] {
            assert!(!page.contains(raw), "{raw}");
        }
        assert!(page.contains("&lt;img src=x onerror=alert(1)&gt;"));
        assert_eq!(page.matches("</script>").count(), 3);
        assert_eq!(inert("</script>\u{2028}"), "\\u003c/script>\\u2028");
    }

    #[test]
    fn nothing_is_asked_of_the_network() {
        let page = html(&sample_results());
        let own = page.replace(LIBRARY.split("//# sourceMappingURL").next().unwrap(), "");
        for word in ["http://", "https://", "src=\"", "@import", "url("] {
            assert!(!own.contains(word), "{word}");
        }
        assert!(!page.contains("sourceMappingURL"));
    }

    #[test]
    fn every_chart_has_its_element_and_its_table() {
        let results = sample_results();
        let page = html(&results);
        let start = page.find("id=\"study\">").unwrap() + "id=\"study\">".len();
        let data: serde_json::Value =
            serde_json::Deserializer::from_str(&page[start..]).into_iter().next().unwrap().unwrap();
        let charts = data["charts"].as_array().unwrap();
        assert!(charts.len() >= 4, "{}", charts.len());
        for chart in charts {
            let id = chart["id"].as_str().unwrap();
            assert_eq!(page.matches(&format!("id=\"chart-{id}\"")).count(), 1, "{id}");
        }
        assert_eq!(charts[0]["values"][0], 202.0);
        assert!(page.contains("<td>202"), "the median is in a table");
        assert!(page.contains("interrupted"), "a partial study says so");
    }
}
