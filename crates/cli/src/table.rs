//! Plain text tables and numbers for people.

use lapidary_weight::InputRounding;

/// Rows under a header, columns as wide as they need; all but the first are aligned to the right.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let columns = header.len();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
            if column == 0 { format!("{cell}{gap}") } else { format!("{gap}{cell}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let header: Vec<String> = header.iter().map(|cell| (*cell).to_owned()).collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let lines = [line(&header), line(&rule)].into_iter().chain(rows.iter().map(|row| line(row)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Bytes as people say them.
pub(crate) fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..10_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// What is stored for each weight of the blocks' layers, and of tables and head.
pub(crate) fn stored_bits(layers: Option<f64>, tables: Option<f64>) -> String {
    match (layers, tables) {
        (Some(layers), Some(tables)) => {
            format!("{layers:.3} bits a weight ({tables:.3} in tables and head)")
        }
        (Some(layers), None) => format!("{layers:.3} bits a weight"),
        (None, Some(tables)) => format!("{tables:.3} bits a weight of tables and head"),
        (None, None) => "nothing compressed".to_owned(),
    }
}

/// How the inputs of a layer are rounded when the model is run, after what its weight is stored as.
pub(crate) fn with_inputs(inputs: Option<InputRounding>) -> String {
    inputs.map_or_else(String::new, |inputs| format!(", inputs {inputs}"))
}
