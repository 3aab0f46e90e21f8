//! Embeds the GraphiQL page of `web/`: writes the table of files that `src/console/` serves.
//!
//! The libraries come from `web/node_modules` if that has the pinned versions, otherwise from `npm
//! ci` in `OUT_DIR`, because a build must not write to the source tree. They are fetched again only
//! when the lockfile or this script changes. If npm is missing or fails, the build warns, and
//! embeds a page that says how to get GraphiQL. `BYOK_BUILD_WITHOUT_CONSOLE=1` selects that page.

#![expect(clippy::disallowed_methods, reason = "Cargo configures a build script through its environment")]

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

const OPT_OUT: &str = "BYOK_BUILD_WITHOUT_CONSOLE";

/// The embedded libraries: package, file in the package, and name under which the file is served.
const LIBRARIES: [(&str, &str, &str); 4] = [
    ("react", "umd/react.production.min.js", "react.js"),
    ("react-dom", "umd/react-dom.production.min.js", "react-dom.js"),
    ("graphiql", "graphiql.min.js", "graphiql.js"),
    ("graphiql", "graphiql.min.css", "graphiql.css"),
];
const LICENCES: &str = "licences.txt";

fn main() -> io::Result<()> {
    for path in ["build.rs", "web/package.json", "web/package-lock.json", "web/.npmrc", "web/page"] {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-env-changed={OPT_OUT}");

    let web = cargo_dir("CARGO_MANIFEST_DIR").join("web");
    let out = cargo_dir("OUT_DIR");
    let libraries = out.join("console");

    let opted_out = env::var_os(OPT_OUT).is_some_and(|value| !value.is_empty() && value != "0");
    let embedded = !opted_out
        && match provide_libraries(&web, &out, &libraries) {
            Ok(()) => true,
            Err(reason) => {
                println!("cargo:warning=built without GraphiQL: {reason}");
                println!(
                    "cargo:warning=to embed it: install Node.js 20 or later, touch web/package-lock.json, build again \
                     ({OPT_OUT}=1 silences this)"
                );
                false
            }
        };

    let page = web.join("page");
    let mut files = vec![
        ("index.html", page.join(if embedded { "index.html" } else { "missing.html" })),
        ("console.css", page.join("console.css")),
        ("icon.svg", page.join("icon.svg")),
    ];
    if embedded {
        files.push(("console.js", page.join("console.js")));
        files.extend(LIBRARIES.iter().map(|&(_, _, name)| (name, libraries.join(name))));
        files.push((LICENCES, libraries.join(LICENCES)));
    }
    fs::write(out.join("console_files.rs"), table(embedded, &files)?)
}

fn cargo_dir(variable: &str) -> PathBuf {
    PathBuf::from(env::var_os(variable).expect("Cargo sets this variable for every build script"))
}

/// Puts the libraries into the folder `libraries`, unless they are there and current. The error is
/// the reason for the warning.
fn provide_libraries(web: &Path, out: &Path, libraries: &Path) -> Result<(), String> {
    let manifest = read(&web.join("package.json"))?;
    let stamp = hash((&manifest, read(&web.join("package-lock.json"))?, include_str!("build.rs")));
    let stamp_file = libraries.join("stamp");
    if fs::read_to_string(&stamp_file).is_ok_and(|found| found == stamp) {
        return Ok(());
    }
    let reason = |error: io::Error| error.to_string();
    fs::create_dir_all(libraries).map_err(reason)?;

    let in_tree = web.join("node_modules");
    if in_tree.is_dir() && take_libraries(&manifest, &in_tree, libraries).is_ok() {
        return fs::write(stamp_file, stamp).map_err(reason);
    }
    let project = out.join("npm");
    fs::create_dir_all(&project).map_err(reason)?;
    for name in ["package.json", "package-lock.json", ".npmrc"] {
        // `fs::copy` would also copy the permissions of a read-only checkout.
        fs::write(project.join(name), read(&web.join(name))?).map_err(reason)?;
    }
    npm_ci(&project)?;
    take_libraries(&manifest, &project.join("node_modules"), libraries)?;
    fs::remove_dir_all(&project).map_err(reason)?;
    fs::write(stamp_file, stamp).map_err(reason)
}

/// Installs the packages of the lockfile. npm checks their hashes, and runs none of their scripts.
fn npm_ci(project: &Path) -> Result<(), String> {
    let output = Command::new(if cfg!(windows) { "npm.cmd" } else { "npm" })
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"])
        .args(["--loglevel=error", "--fetch-retries=1"])
        .current_dir(project)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "npm is not installed".to_owned(),
            _ => format!("npm does not start: {error}"),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let reason = stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given");
    Err(format!("npm ci failed ({}): {reason}", output.status))
}

/// Copies the libraries from `modules`, after checking that each has the version that `manifest`
/// pins.
fn take_libraries(manifest: &str, modules: &Path, libraries: &Path) -> Result<(), String> {
    for (package, file, name) in LIBRARIES {
        let pin = value_of(manifest, package).ok_or(format!("web/package.json does not name {package}"))?;
        let description = read(&modules.join(package).join("package.json"))?;
        if value_of(&description, "version") != Some(pin) {
            return Err(format!("{package} is not version {pin}"));
        }
        let mut text = without_source_map(&read(&modules.join(package).join(file))?).to_owned();
        if name.ends_with(".css") {
            text = without_embedded_data(&text);
        }
        fs::write(libraries.join(name), text).map_err(|error| error.to_string())?;
    }
    fs::write(libraries.join(LICENCES), licences(modules)?).map_err(|error| error.to_string())
}

/// The string value after `"key":`. This is enough for the two files that it reads, which npm
/// writes.
fn value_of<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{key}\": \""))?;
    rest.split_once('"').map(|(value, _)| value)
}

fn without_source_map(text: &str) -> &str {
    text.rsplit_once("//# sourceMappingURL=").map_or(text, |(before, _)| before)
}

/// The style sheet without embedded fonts and images. The page uses system fonts, and without these
/// its content security policy needs no `data:`.
fn without_embedded_data(css: &str) -> String {
    let without_fonts = replaced(css, "@font-face", "}", "");
    replaced(&without_fonts, "url(data:", ")", "none")
}

/// The text with each span from `open` to the next `close` replaced.
fn replaced(text: &str, open: &str, close: &str, by: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(open) {
        kept.push_str(before);
        kept.push_str(by);
        rest = after.split_once(close).map_or("", |(_, after)| after);
    }
    kept.push_str(rest);
    kept
}

/// The licence texts of all packages, because graphiql.js bundles several of them.
fn licences(modules: &Path) -> Result<String, String> {
    let mut texts =
        String::from("GraphiQL, React and the packages that they bundle, under their own licences.\n");
    for entry in sorted(modules)? {
        let packages = match entry.file_name().and_then(|name| name.to_str()) {
            Some(name) if name.starts_with('.') => continue,
            Some(name) if name.starts_with('@') => sorted(&entry)?,
            _ => vec![entry],
        };
        for package in packages.iter().filter(|package| package.is_dir()) {
            for file in sorted(package)? {
                let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_lowercase();
                if !["licen", "notice"].iter().any(|start| name.starts_with(start)) || !file.is_file() {
                    continue;
                }
                let title = package.strip_prefix(modules).unwrap_or(package).display();
                let text = String::from_utf8_lossy(&fs::read(&file).map_err(|error| error.to_string())?)
                    .into_owned();
                write!(texts, "\n---- {title}\n\n{}\n", text.trim()).map_err(|error| error.to_string())?;
            }
        }
    }
    Ok(texts)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// The Rust source of the table. The ETag is a hash of the content, which distinguishes versions
/// but protects nothing.
fn table(embedded: bool, files: &[(&str, PathBuf)]) -> io::Result<String> {
    let mut rust = format!("const GRAPHIQL: bool = {embedded};\n\nstatic FILES: &[File] = &[\n");
    for (name, path) in files {
        let etag = format!("\"{}\"", hash(fs::read(path)?));
        let content_type = match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
            "html" => "text/html; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => "text/plain; charset=utf-8",
        };
        let line = format!(
            "    File {{ name: {name:?}, content_type: {content_type:?}, etag: {etag:?}, bytes: include_bytes!({path:?}) }},\n"
        );
        rust.push_str(&line);
    }
    rust.push_str("];\n");
    Ok(rust)
}

fn hash(value: impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}
