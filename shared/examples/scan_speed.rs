//! How fast a file, folder or zip is cut and hashed: `cargo run --release -p shared --features runtime --example scan_speed -- PATH`.

use std::{path::Path, sync::Arc, time::Instant};

use shared::runtime::{files::Source, listing::Listing};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: scan_speed PATH")?;
    let path = Path::new(&path);
    let source = match path.extension() {
        Some(extension) if extension == "zip" => Source::zip(path)?,
        _ if path.is_dir() => Source::folder(path)?,
        _ => Source::files(vec![(path.to_owned(), "file".parse()?)])?,
    };
    let mb = source.bytes() as f64 / 1e6;
    let begun = Instant::now();
    let manifest = source.scan(&mut |_| {}, &Default::default())?;
    let (scanned, chunks) = (begun.elapsed().as_secs_f64(), manifest.chunk_count());
    println!("scan: {} files, {chunks} chunks, {mb:.0} MB in {scanned:.2} s = {:.0} MB/s", manifest.entries.len(), mb / scanned);

    let listing = Arc::new(Listing::new(&manifest, &std::env::temp_dir()));
    let mut reader = Arc::new(source).reader(listing)?;
    let (begun, mut buf) = (Instant::now(), Vec::<u8>::new());
    for (index, (place, _)) in (0..).zip(manifest.places()) {
        buf.clear();
        reader.read(index, place, &mut buf, false)?;
    }
    println!("read back: {:.0} MB/s", mb / begun.elapsed().as_secs_f64());
    Ok(())
}
