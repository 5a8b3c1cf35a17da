//! `report.html`: a chart for each metric, and everything in words and numbers below.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::SegmentValue;
use plotters::prelude::*;

use super::report::{Curve, Report, Row};

/// Pixels.
const WIDTH: u32 = 820;
const HEAD_HEIGHT: u32 = 90;
const BAR_HEIGHT: u32 = 30;
const NAMES_WIDTH: u32 = 170;
const CURVES_HEIGHT: u32 = 460;
/// What has no time has this, in microseconds: a logarithm needs one.
const LEAST_US: f64 = 0.1;

/// The page: it loads nothing from elsewhere.
pub(super) fn page(report: &Report) -> Result<String> {
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Pilot beside its peers</title>\n<style>\
         body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em}table{border-collapse:collapse}\
         td,th{padding:.2em .6em;border-bottom:1px solid #ccc;text-align:right}td:first-child,th:first-child,\
         td:nth-child(2),th:nth-child(2){text-align:left}pre{white-space:pre-wrap}</style></head><body>\n\
         <h1>Pilot beside its peers</h1>\n<p>Bars are medians; the thin lines reach from the least to the greatest run.</p>\n",
    );
    for metric in report.metrics() {
        let rows: Vec<&Row> = report.rows.iter().filter(|row| row.metric == metric).collect();
        page += &bars(metric, &rows)?;
        page += "\n";
    }
    if !report.curves.is_empty() {
        page += "<p>How round trips are distributed: the share of them that took at most so long.</p>\n";
        page += &distributions("echo_19B", &report.curves)?;
        page += "\n";
    }
    page += "<h2>Rows</h2>\n<table><tr><th>metric</th><th>system</th><th>median</th><th>least</th><th>greatest</th>\
             <th>unit</th><th>runs</th></tr>\n";
    for Row { metric, system, unit, median, min, max, runs } in &report.rows {
        let numbers = [median, min, max].map(|value| super::readme::number(*value)).join("</td><td>");
        page += &format!(
            "<tr><td>{}</td><td>{}</td><td>{numbers}</td><td>{}</td><td>{runs}</td></tr>\n",
            escape(metric),
            escape(system),
            escape(unit),
        );
    }
    page += "</table>\n<h2>What is assumed</h2>\n<ul>\n";
    for assumption in &report.assumptions {
        page += &format!("<li>{}</li>\n", escape(assumption));
    }
    let machine = escape(&serde_json::to_string_pretty(&report.machine)?);
    page += &format!("</ul>\n<h2>Where</h2>\n<pre>{machine}</pre>\n</body></html>\n");
    Ok(page)
}

/// One bar for each system, from above in the order of the rows.
fn bars(metric: &str, rows: &[&Row]) -> Result<String> {
    let mut svg = String::new();
    let unit = rows.first().map_or("", |row| row.unit.as_str());
    let most = rows.iter().map(|row| row.max).fold(f64::MIN_POSITIVE, f64::max);
    let height = HEAD_HEIGHT + BAR_HEIGHT * rows.len() as u32;
    let name = |at: usize| rows.len().checked_sub(at + 1).map_or("", |at| rows[at].system.as_str());
    let drawn = || -> Result<(), Box<dyn std::error::Error + '_>> {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("{metric} ({unit})"), ("sans-serif", 18))
            .margin(8)
            .margin_right(40)
            .x_label_area_size(28)
            .y_label_area_size(NAMES_WIDTH)
            .build_cartesian_2d(0.0..most * 1.02, (0..rows.len() as i32 - 1).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .x_labels(6)
            .x_label_formatter(&|value| super::readme::number(*value))
            .y_labels(rows.len())
            .y_label_formatter(&|at| match at {
                SegmentValue::CenterOf(at) => name(usize::try_from(*at).unwrap_or(usize::MAX)).to_owned(),
                _ => String::new(),
            })
            .draw()?;
        for (at, row) in rows.iter().rev().enumerate() {
            let (at, is_ours) = (at as i32, row.system.starts_with("pilot"));
            let colour = if is_ours { RGBColor(0x1b, 0x6c, 0xa8) } else { RGBColor(0xa9, 0xb4, 0xc0) };
            let mut bar = Rectangle::new(
                [(0.0, SegmentValue::Exact(at)), (row.median, SegmentValue::Exact(at + 1))],
                colour.filled(),
            );
            bar.set_margin(5, 5, 0, 0);
            let range = [row.min, row.max].map(|value| (value, SegmentValue::CenterOf(at)));
            chart.draw_series([bar])?;
            chart.draw_series([PathElement::new(range, BLACK)])?;
        }
        root.present()?;
        Ok(())
    };
    let result = { drawn }().map_err(|error| anyhow!("drawing {metric}: {error}"));
    result.map(|()| svg)
}

/// A line for each system: shares upwards, time to the right, by its powers of ten.
fn distributions(metric: &str, curves: &[Curve]) -> Result<String> {
    let mut svg = String::new();
    let unit = curves.first().map_or("", |curve| curve.unit.as_str());
    let values = || curves.iter().flat_map(|curve| curve.points.iter().map(|(_, value)| value.max(LEAST_US)));
    let (least, most) = (values().fold(f64::MAX, f64::min), values().fold(LEAST_US, f64::max));
    if least >= most {
        return Ok(svg);
    }
    let drawn = || -> Result<(), Box<dyn std::error::Error + '_>> {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, CURVES_HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("{metric}, distribution ({unit})"), ("sans-serif", 18))
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(50)
            .build_cartesian_2d((least..most).log_scale(), 0.0..1.0)?;
        let number = |value: &f64| super::readme::number(*value);
        chart.configure_mesh().light_line_style(WHITE).x_label_formatter(&number).y_label_formatter(&number).draw()?;
        for (at, curve) in curves.iter().enumerate() {
            let is_ours = curve.system.starts_with("pilot");
            let style = Palette99::pick(at).stroke_width(if is_ours { 3 } else { 1 });
            let points: Vec<_> = curve.points.iter().map(|(share, value)| (value.max(LEAST_US), *share)).collect();
            chart
                .draw_series([PathElement::new(points, style)])?
                .label(curve.system.as_str())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        }
        let position = SeriesLabelPosition::LowerRight;
        chart.configure_series_labels().position(position).background_style(WHITE).border_style(BLACK).draw()?;
        root.present()?;
        Ok(())
    };
    let result = { drawn }().map_err(|error| anyhow!("drawing {metric}: {error}"));
    result.map(|()| svg)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_a_chart_for_each_metric_and_a_bar_for_each_system() {
        let row =
            |metric: &str, system: &str, value: f64| Row::of(metric, system, "bytes", &[value, value * 2.0]).unwrap();
        let rows = vec![row("one", "pilot", 1.0), row("one", "<peer>", 4.0), row("two", "pilot", 0.0)];
        let report = Report::new(rows, serde_json::json!({"cores": 2}), &["a < b"]);
        let page = page(&report).unwrap();
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("one (bytes)").count(), 1);
        // A bar is a rectangle with its colour: ours twice, the peer's once.
        let ours = page.matches("#1B6CA8").count();
        assert_eq!((ours, page.matches("#A9B4C0").count()), (2, 1), "{page}");
        let widths: Vec<f64> = page
            .lines()
            .filter(|line| line.contains("#1B6CA8") || line.contains("#A9B4C0"))
            .filter_map(|line| line.split("width=\"").nth(1)?.split('"').next()?.parse().ok())
            .collect();
        assert_eq!(widths.len(), 3, "{page}");
        // Drawn from below: the peer's, whose median is four times ours, and then ours.
        assert!((widths[0] / widths[1] - 4.0).abs() < 0.05, "{widths:?}");
        assert!(page.contains("a &lt; b") && page.contains("&lt;peer&gt;") && page.contains("\"cores\": 2"));
        assert!(!page.contains("<peer>"));
    }

    #[test]
    fn distributions_have_a_line_for_each_system() {
        let curve = |system: &str, by: f64| Curve {
            metric: "echo_19B".into(),
            system: system.into(),
            unit: "µs".into(),
            points: vec![(0.0, 3.0 * by), (0.5, 4.0 * by), (1.0, 80.0 * by)],
        };
        let mut report = Report::new(vec![], serde_json::Value::Null, &[]);
        report.curves = vec![curve("pilot", 1.0), curve("<peer>", 10.0)];
        let page = page(&report).unwrap();
        assert!(
            page.contains("echo_19B, distribution (µs)") && page.contains("pilot") && page.contains("&lt;peer&gt;")
        );
        // Each curve and each key is a line with its stroke.
        assert!(page.matches("<polyline").count() >= 4, "{page}");
        report.curves = vec![curve("pilot", 0.0)];
        assert!(super::page(&report).is_ok(), "nothing took any time");
    }

    #[test]
    fn nothing_measured_is_drawn_as_nothing() {
        assert!(page(&Report::new(vec![], serde_json::Value::Null, &[])).unwrap().contains("<h2>Rows</h2>"));
    }
}
