//! The report's forms: figures, table, CSV, JSON, HTML, findings, and two reports compared.
#![allow(missing_docs, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod compared;
mod derived;
mod files;
mod page;
mod sample;
mod shown;
