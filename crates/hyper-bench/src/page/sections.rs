//! The page's sections, in their order.

use super::charts::{self, Chart};
use super::{escaped, figure};
use crate::plan::{Axis, Measure};
use crate::published::{FIGURES, HYPER_2015, STUDY_2021};
use crate::results::{Results, State};
use crate::table::{Failure, failures, number};
use crate::words::{self, short};

pub(super) fn all(results: &Results, all: &mut Vec<Chart>) -> String {
    let mut out = head(results);
    out.push_str(&grid(results));
    out.push_str(&costs(results));
    for axis in Axis::ALL.into_iter().filter(|axis| results.study.settings.axes.contains(axis)) {
        out.push_str(&one(results, axis, all));
    }
    out.push_str(&published(results));
    out.push_str(&trouble(results));
    out.push_str(&machine(results));
    out
}

fn head(results: &Results) -> String {
    let study = &results.study;
    let axes = study.settings.axes.iter();
    let links: Vec<_> =
        axes.map(|axis| format!("<a href=\"#{}\">{}</a>", axis.name(), axis.title())).collect();
    let names: Vec<_> = study.subjects.iter().map(|subject| escaped(&subject.name)).collect();
    let state = match &study.state {
        State::Complete => String::new(),
        State::Running => "<p class=\"warn\">This study was not finished.</p>".into(),
        State::Partial { why } => {
            format!("<p class=\"warn\">This study is partial: {}.</p>", escaped(why))
        }
    };
    format!(
        "<h1>Isolations compared: {}</h1>\n<p class=\"soft\">{} · {} · {} rounds{}</p>\n{state}\
         <nav><a href=\"#summary\">Summary</a> <a href=\"#costs\">Costs</a> {} <a href=\"#published\">Published</a> \
         <a href=\"#trouble\">Failed, missing</a> <a href=\"#machine\">Machine, method</a></nav>\n",
        names.join(", "),
        escaped(&study.started),
        escaped(&study.machine.cpu),
        study.settings.runs,
        if study.settings.quick { ", quick" } else { "" },
        links.join(" ")
    )
}

/// How many times as good each subject is on each axis.
fn grid(results: &Results) -> String {
    let mut out = String::from("<h2 id=\"summary\">Summary</h2>\n");
    let mut references = ["runc", "host"].map(|name| (name, measured(results, name)));
    references.sort_by_key(|(name, _)| results.reference() != Some(*name));
    for (reference, _) in references.into_iter().filter(|(_, measured)| *measured) {
        out.push_str(&format!(
            "<p>Beside <b>{reference}</b>: the middle (geometric mean) of the axis' main measures. What lies within 2 % is even.</p>\n\
             <div class=\"scroll\"><table><thead><tr><th>{reference} = 1</th>"
        ));
        for axis in &results.study.settings.axes {
            out.push_str(&format!("<th>{}</th>", axis.title()));
        }
        out.push_str("</tr></thead><tbody>\n");
        for subject in results.study.subjects.iter().filter(|one| one.name != reference) {
            out.push_str(&format!(
                "<tr><th>{} <small class=\"soft\">{}</small></th>",
                escaped(&subject.name),
                escaped(&subject.wall)
            ));
            for axis in &results.study.settings.axes {
                out.push_str(&match results.worth(*axis, &subject.name, reference) {
                    Some((worth, _)) => {
                        format!("<td{}>{}</td>", shade(worth), short(worth))
                    }
                    None => "<td class=\"soft\">–</td>".to_owned(),
                });
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
    }
    out
}

/// Background by how far a ratio is from 1; ten times is full.
fn shade(worth: f64) -> String {
    let depth = (worth.log10().abs().min(1.0) * 0.55).max(0.04);
    let colour = if worth < 1.0 { "--bad" } else { "--good" };
    format!(" style=\"background: rgba(var({colour}), {depth:.2})\"")
}

fn costs(results: &Results) -> String {
    let mut out = String::from(
        "<h2 id=\"costs\">What each wall costs</h2>\n<p class=\"soft\">Written from the figures by the same command.</p>\n",
    );
    for cost in words::costs(results) {
        let (name, wall) = (escaped(&cost.subject.name), escaped(&cost.subject.wall));
        out.push_str(&format!(
            "<h3>{name} <small class=\"soft\">{wall}</small></h3>\n<p>{}</p>\n<ul>\n",
            escaped(&cost.headline)
        ));
        for (axis, words) in cost.axes {
            out.push_str(&format!("<li><b>{}</b>: {}</li>\n", axis.title(), escaped(&words)));
        }
        out.push_str("</ul>\n");
    }
    out
}

fn one(results: &Results, axis: Axis, all: &mut Vec<Chart>) -> String {
    let measures = results.measures(axis);
    let mut out =
        format!("<h2 id=\"{}\">{}</h2>\n<div class=\"charts\">\n", axis.name(), axis.title());
    // The main ones are drawn; and those of the start, which have few.
    let drawn = measures.iter().filter(|m| m.main || (axis == Axis::Startup && m.unit == "ms"));
    for measure in drawn {
        if let Some(chart) = charts::bars(results, measure) {
            let note = words::better(measure.better);
            out.push_str(&figure(&measure.title, note, false, chart, all));
        }
    }
    if axis == Axis::Startup {
        if let Some(chart) = charts::distribution(results, "start.wall", "ms") {
            let title = "Distribution of the start times";
            out.push_str(&figure(title, "further left is better", true, chart, all));
        }
        if let Some(chart) = charts::phases(results, "start") {
            let title = "Where the time of a start goes (medians)";
            out.push_str(&figure(title, "by the engine's own stamps", true, chart, all));
        }
    }
    out.push_str("</div>\n");
    out.push_str(&table(results, &measures));
    out
}

/// All of an axis' figures: median, spread, ratio.
fn table(results: &Results, measures: &[&Measure]) -> String {
    let mut out = String::from("<div class=\"scroll\"><table><thead><tr><th>median</th>");
    for subject in &results.study.subjects {
        out.push_str(&format!("<th>{}</th>", escaped(&subject.name)));
    }
    out.push_str("</tr></thead><tbody>\n");
    let reference = results.reference();
    for measure in measures {
        out.push_str(&format!(
            "<tr><td class=\"words\">{} <span class=\"soft\">[{}]</span></td>",
            escaped(&measure.title),
            escaped(&measure.unit)
        ));
        for subject in &results.study.subjects {
            let Some(cell) = results.cell(&measure.id, &subject.name) else {
                out.push_str("<td class=\"soft\">–</td>");
                continue;
            };
            let Some(median) = cell.median else {
                out.push_str("<td class=\"soft\">failed</td>");
                continue;
            };
            let ratio = if reference == Some("runc") { cell.to_runc } else { cell.to_host };
            let ratio = ratio.map(|ratio| format!("× {}", number(ratio))).unwrap_or_default();
            let spread = match (cell.low, cell.high) {
                (Some(low), Some(high)) => format!("{} – {}", number(low), number(high)),
                _ => String::new(),
            };
            let failed = match cell.failed {
                0 => String::new(),
                failed => format!("; {failed} failed"),
            };
            let tails = match (cell.p95, cell.p99) {
                (Some(p95), Some(p99)) if measure.id == "start.wall" => {
                    format!("<small>95 %: {}, 99 %: {}</small>", number(p95), number(p99))
                }
                _ => String::new(),
            };
            out.push_str(&format!(
                "<td>{}<small>{ratio}</small><small>{spread}</small><small>{} runs{failed}</small>{tails}</td>",
                number(median),
                cell.n
            ));
        }
        out.push_str("</tr>\n");
    }
    let beside = reference.map(|name| format!("× the median of {name}; ")).unwrap_or_default();
    out.push_str(&format!(
        "</tbody></table></div>\n<p class=\"soft\">{beside}quartiles; measured runs.</p>\n"
    ));
    out
}

/// Published figures beside ours.
fn published(results: &Results) -> String {
    let mut out = format!(
        "<h2 id=\"published\">Published figures beside these</h2>\n<p>{}. Other hardware, other kernels, other versions: \
         only the distance between columns of one machine says something.</p>\n\
         <p class=\"soft\">The axes are those of: {}. Its figures are not public to us.</p>\n\
         <div class=\"scroll\"><table><thead><tr><th>figure</th><th>published</th>",
        escaped(HYPER_2015),
        escaped(STUDY_2021)
    );
    for subject in &results.study.subjects {
        out.push_str(&format!("<th>{}</th>", escaped(&subject.name)));
    }
    out.push_str("</tr></thead><tbody>\n");
    for figure in &FIGURES {
        out.push_str(&format!(
            "<tr><td class=\"words\">{} [{}]<small>{}</small></td><td>{}: {}</td>",
            figure.what,
            figure.unit,
            figure.differs,
            figure.who,
            number(figure.value)
        ));
        for subject in &results.study.subjects {
            let median = results.cell(figure.ours, &subject.name).and_then(|cell| cell.median);
            out.push_str(&format!("<td>{}</td>", median.map_or_else(|| "–".into(), number)));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

fn trouble(results: &Results) -> String {
    let mut out = String::from("<h2 id=\"trouble\">What failed, what is missing</h2>\n<ul>\n");
    let failures = failures(results);
    for Failure { subject, error, steps, count } in &failures {
        let steps: Vec<_> = steps.iter().map(|step| escaped(step)).collect();
        out.push_str(&format!(
            "<li><b>{}</b> failed in {} ({count} runs): {}</li>\n",
            escaped(subject),
            steps.join(", "),
            escaped(error)
        ));
    }
    for missing in &results.study.missing {
        let (name, why) = (escaped(&missing.name), escaped(&missing.why));
        out.push_str(&format!("<li><b>{name}</b> is missing: {why}</li>\n"));
    }
    if failures.is_empty() && results.study.missing.is_empty() {
        out.push_str("<li>nothing</li>\n");
    }
    out.push_str("</ul>\n");
    out
}

fn machine(results: &Results) -> String {
    let (study, machine) = (&results.study, &results.study.machine);
    let measured = results.samples.iter().filter(|sample| sample.round > 0);
    let range = |values: Vec<f64>| {
        let sorted = crate::statistics::sorted(values);
        match (sorted.first(), sorted.last()) {
            (Some(first), Some(last)) => format!("{} – {}", number(*first), number(*last)),
            _ => "not told by this host".into(),
        }
    };
    let rows = [
        (
            "CPU",
            format!(
                "{}, {} CPUs{}",
                machine.cpu,
                machine.cpus,
                if machine.virtual_machine { ", itself a virtual machine" } else { "" }
            ),
        ),
        (
            "CPU frequency while it ran, MHz",
            range(measured.clone().filter_map(|s| s.mhz).collect()),
        ),
        ("load average while it ran", range(measured.map(|s| s.load).collect())),
        ("governor", machine.governor.clone().unwrap_or_else(|| "not told by this host".into())),
        ("memory", format!("{} MiB", machine.memory_bytes >> 20)),
        ("file system", machine.file_system.clone()),
        ("system", format!("{}, Linux {}", machine.os, machine.kernel)),
        ("Hyper", machine.hyper.clone()),
        (
            "limits of each",
            format!("{} CPUs, {} of memory", study.settings.cpus, study.settings.memory),
        ),
        ("image", format!("{} {}", study.settings.image, study.settings.image_id)),
        ("from, to", format!("{}, {}", study.started, study.finished.as_deref().unwrap_or("–"))),
    ];
    let mut out = String::from(
        "<h2 id=\"machine\">Machine and method</h2>\n<div class=\"scroll\"><table><tbody>\n",
    );
    let subjects = study.subjects.iter().map(|subject| {
        (
            subject.name.as_str(),
            format!("{}, {}", subject.wall, subject.version.as_deref().unwrap_or("–")),
        )
    });
    let tools = study.tools.iter().map(|(tool, version)| (tool.as_str(), version.clone()));
    for (name, value) in rows.into_iter().chain(subjects).chain(tools) {
        out.push_str(&format!(
            "<tr><td class=\"words\">{}</td><td class=\"words\">{}</td></tr>\n",
            escaped(name),
            escaped(&value)
        ));
    }
    let axes: Vec<_> = study.settings.axes.iter().map(|axis| axis.name()).collect();
    let mut command = format!(
        "hyper bench run --axis {} --runs {} --cpus {} --memory {} --out DIR",
        axes.join(","),
        study.settings.runs,
        study.settings.cpus,
        study.settings.memory
    );
    if study.settings.quick {
        command.push_str(" --quick");
    }
    if !study.settings.runtimes.is_empty() {
        command.push_str(&format!(" --runtime {}", study.settings.runtimes.join(",")));
    }
    out.push_str(&format!(
        "</tbody></table></div>\n<ul>\n\
         <li>Every job runs on one subject after the other, another first in each round, so that a noisy host is noisy for all. \
         The warm-up round counts nowhere{}.</li>\n\
         <li>Figures are medians; whiskers are quartiles, or the whole range of fewer than five runs.</li>\n\
         <li>Tools run in containers of the same image, without a network unless they measure one. <i>host</i> is the image's tree \
         in a chroot, with the same limits and capabilities and without any other wall.</li>\n\
         <li>Network and Nginx: the server is in the container, the client is a process of this host, the same for all; \
         for <i>host</i> that is the loopback device.</li>\n\
         <li>MariaDB runs without native AIO and accounts, since not every kernel here has what they need.</li>\n\
         <li>Direct I/O goes round the page cache of the kernel that the file system is in: for a guest that is the guest's own, \
         not always the host's.</li>\n\
         <li>Figures of emulated guests (qemu without KVM) say what emulation costs, not what QEMU/KVM costs.</li>\n</ul>\n\
         <h3>How to repeat it</h3>\n<pre>images/build bench bench.tar\nhyper load -i bench.tar\n{}</pre>\n",
        if study.settings.quick { ", and has only starts in a quick study" } else { "" },
        escaped(&command)
    ));
    out
}

fn measured(results: &Results, name: &str) -> bool {
    results.summary.iter().any(|cell| cell.subject == name && cell.n > 0)
}
