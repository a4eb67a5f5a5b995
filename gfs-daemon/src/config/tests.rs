use super::*;
use serde::Deserialize;

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(default)]
struct Sample {
    listen: String,
    replicas: u8,
    masters: Vec<String>,
    log_dir: Option<PathBuf>,
    strict: bool,
}

impl Default for Sample {
    fn default() -> Self {
        Self { listen: "127.0.0.1:7400".into(), replicas: 3, masters: vec![], log_dir: None, strict: false }
    }
}

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn merge(
    file: Option<PathBuf>,
    environment: &[(&str, &str)],
    flags: &[(&'static str, &str)],
) -> Result<Loaded<Sample>, ConfigError> {
    let environment = environment.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    Layers::merge("sample", file, environment, flags.iter().map(|(k, v)| (*k, v.to_string())).collect())
}

#[test]
fn later_layers_win_and_say_where_they_came_from() {
    let (_dir, path) = file("listen = \"a:1\"\nreplicas = 2\nstrict = true\n");
    let loaded = merge(
        Some(path.clone()),
        &[("GFS_LISTEN", "b:2"), ("GFS_REPLICAS", "4"), ("GFS_SAMPLE_REPLICAS", "5")],
        &[("listen", "c:3")],
    )
    .unwrap();
    assert_eq!(loaded.value.listen, "c:3");
    assert_eq!(loaded.value.replicas, 5);
    assert!(loaded.value.strict);
    assert_eq!(loaded.origin("listen"), Some(&Origin::Flag("listen".into())));
    assert_eq!(loaded.origin("replicas"), Some(&Origin::Environment("GFS_SAMPLE_REPLICAS".into())));
    assert_eq!(loaded.origin("strict"), Some(&Origin::File(path)));
    assert_eq!(loaded.origin("masters"), Some(&Origin::Default));
}

#[test]
fn unknown_key_is_refused_with_the_nearest_one() {
    let (_dir, path) = file("replica = 2\n");
    let error = merge(Some(path.clone()), &[], &[]).unwrap_err().to_string();
    assert_eq!(error, format!("{}: unknown key `replica`, did you mean `replicas`?", path.display()));
}

#[test]
fn unknown_variable_under_the_own_prefix_is_refused_and_a_foreign_one_is_not() {
    let error = merge(None, &[("GFS_SAMPLE_LISTN", "x")], &[]).unwrap_err().to_string();
    assert!(error.contains("GFS_SAMPLE_LISTN") && error.contains("`listen`"), "{error}");
    assert!(merge(None, &[("GFS_CLUSTER", "x")], &[]).is_ok());
}

#[test]
fn list_in_a_file_does_for_a_key_that_holds_text_with_commas() {
    let (_dir, path) = file("listen = [\"a:1\", \"b:2\"]\n");
    assert_eq!(merge(Some(path), &[], &[]).unwrap().value.listen, "a:1,b:2");
    for refused in ["listen = []", "listen = [7]", "listen = [\"a,b\", \"c\"]", "replicas = [\"1\"]"] {
        let (_dir, path) = file(refused);
        let error = merge(Some(path), &[], &[]).unwrap_err();
        assert!(matches!(error, ConfigError::WrongValue { .. }), "{refused}: {error}");
    }
}

#[test]
fn wrong_type_names_file_key_and_expectation() {
    let (_dir, path) = file("replicas = \"many\"\n");
    let error = merge(Some(path.clone()), &[], &[]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: key `replicas`:", path.display())), "{error}");
    assert!(error.contains("expected u8"), "{error}");
    assert!(!error.contains('\n'));
}

#[test]
fn number_out_of_range_is_refused_from_a_flag() {
    let error = merge(None, &[], &[("replicas", "300")]).unwrap_err().to_string();
    assert!(error.starts_with("flag --replicas: key `replicas`:"), "{error}");
}

#[test]
fn syntax_error_names_the_line() {
    let (_dir, path) = file("listen = \"a:1\"\nreplicas = = 2\n");
    let error = merge(Some(path.clone()), &[], &[]).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}, line 2:", path.display())), "{error}");
    assert!(!error.contains('\n'));
}

#[test]
fn missing_file_that_was_asked_for_is_an_error() {
    let error = merge(Some("/nonexistent/x.toml".into()), &[], &[]).unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }));
}

#[test]
fn text_becomes_lists_numbers_and_strings_that_look_like_numbers() {
    let loaded =
        merge(None, &[("GFS_MASTERS", "a:1, b:2"), ("GFS_LISTEN", "7400")], &[("log_dir", "/var/log/x")]).unwrap();
    assert_eq!(loaded.value.masters, ["a:1", "b:2"]);
    assert_eq!(loaded.value.listen, "7400");
    assert_eq!(loaded.value.log_dir.as_deref(), Some(Path::new("/var/log/x")));
}

#[test]
fn printed_configuration_is_toml_and_shows_unset_keys() {
    let loaded = merge(None, &[], &[("replicas", "2")]).unwrap();
    let text = loaded.print();
    assert!(text.contains("# log_dir is not set"), "{text}");
    assert!(text.contains("# flag --replicas"), "{text}");
    let table: Table = text.parse().unwrap();
    assert_eq!(Sample::deserialize(Value::Table(table)).unwrap(), loaded.value);
}
