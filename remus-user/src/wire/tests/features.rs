//! Features, and the table of kinds: what sessions have, and what the docs say of them.

use super::*;

#[test]
fn a_field_is_there_exactly_in_a_session_that_has_its_feature() {
    let framed = |engine_age| {
        let mut out = Vec::new();
        heartbeat(engine_age).encode(&mut out);
        out
    };
    let lane = Lane::ControlToBackup;
    for (features, engine_age) in
        [(Features::NONE, None), (AGE, Some(Duration::ZERO)), (AGE, Some(Duration::from_secs(9)))]
    {
        let mut buffer = buffer_with(features, lane, &framed(engine_age));
        let came = ToBackup::decode(&buffer.next_frame().unwrap().unwrap());
        assert_eq!(came, Ok(ToBackup::Heartbeat(heartbeat(engine_age))));
    }
    let unasked = error_with(Features::NONE, lane, &framed(Some(Duration::ZERO)));
    let refused = WireError::Feature { kind: Kind::Heartbeat, feature: Feature::EngineAge };
    assert_eq!(unasked, refused);
    let words = "a Heartbeat makes use of engine-age, a feature that this session does not have";
    assert_eq!(refused.to_string(), words);
    assert_eq!(error_with(AGE, lane, &framed(None)), WireError::Short);
    let age = Duration::from_millis(u64::from(u32::MAX) + 1);
    let mut buffer = buffer_of(lane, &framed(Some(age)));
    let Ok(ToBackup::Heartbeat(came)) = ToBackup::decode(&buffer.next_frame().unwrap().unwrap())
    else {
        panic!("a heartbeat")
    };
    assert_eq!(came.engine_age, Some(Duration::from_millis(u32::MAX.into())), "as old as it goes");
}

#[test]
fn a_kind_is_refused_in_a_session_that_lacks_its_feature() {
    let mut out = Vec::new();
    let trial = Trial { term: term(3) };
    trial.encode(&mut out);
    let refused = WireError::Feature { kind: Kind::Trial, feature: Feature::Trial };
    for lacking in [Features::NONE, AGE] {
        assert_eq!(error_with(lacking, Lane::Trial, &out), refused);
        // The header alone tells, so nothing is received for it.
        let header = &out[..HEADER_LEN];
        assert_eq!(error_with(lacking, Lane::Trial, header), refused);
    }
    let features = Features::of(&[Feature::Trial]);
    let mut buffer = buffer_with(features, Lane::Trial, &out);
    let came = OnTrial::decode(&buffer.next_frame().unwrap().unwrap());
    assert_eq!(came, Ok(OnTrial::Trial(trial)));
}

#[test]
fn a_session_has_the_features_that_both_ends_named() {
    assert_eq!(Features::shared_with(Features::NONE), Features::NONE);
    assert_eq!(Features::shared_with(Features::of(&[Feature::Trial])), Features::NONE);
    let both = Features::shared_with(Features::of(&[Feature::EngineAge, Feature::Trial]));
    assert_eq!(both, AGE);
    let mut bits: Vec<_> = Feature::ALL.iter().map(|feature| *feature as u8).collect();
    bits.dedup();
    assert!(bits.is_sorted() && bits.len() == Feature::ALL.len(), "a bit is given out once");
}

#[test]
fn a_later_release_may_name_bits_and_add_fields_that_are_not_known_here() {
    // The greeting with other bits, and something behind its last field.
    let greet = |kind, encoded: &[u8], bits: u64, more: &[u8]| {
        let mut body = encoded[HEADER_LEN..].to_vec();
        body[8..16].copy_from_slice(&bits.to_le_bytes());
        raw(kind, &[&body, more].concat())
    };
    let unknown: u64 = 1 << 62 | 1;
    let decoded = |lane, bytes: &[u8]| {
        let mut buffer = buffer_with(Features::NONE, lane, bytes);
        let frame = buffer.next_frame().unwrap().unwrap();
        match lane {
            Lane::ControlToBackup => match ToBackup::decode(&frame)? {
                ToBackup::Hello(hello) => Ok(hello.features),
                other => panic!("{other:?}"),
            },
            _ => match ToPrimary::decode(&frame)? {
                ToPrimary::Welcome(welcome) => Ok(welcome.features),
                other => panic!("{other:?}"),
            },
        }
    };
    let (mut hello, mut welcome) = (Vec::new(), Vec::new());
    to_backup()[0].encode(&mut hello);
    to_primary()[0].encode(&mut welcome);
    for (lane, kind, bytes) in [
        (Lane::ControlToBackup, Kind::Hello, hello),
        (Lane::ControlToPrimary, Kind::Welcome, welcome),
    ] {
        for more in [&[][..], &[1, 2, 3]] {
            let theirs = decoded(lane, &greet(kind, &bytes, unknown, more)).unwrap();
            assert_eq!(Features::shared_with(theirs), AGE);
        }
        assert_eq!(decoded(lane, &greet(kind, &bytes, 1, &[1])), Err(WireError::Trailing));
    }
}

#[test]
fn the_table_of_kinds_in_the_docs_is_that_of_the_program() {
    let cells = |line: &str| {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    };
    let documented: Vec<_> = include_str!("../../../../docs/protocol.md")
        .lines()
        .skip_while(|line| *line != "| number | kind | way | only with feature |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect();
    let kinds: Vec<_> = Kind::ALL
        .iter()
        .filter_map(|kind| {
            let way = match kind.lane() {
                Lane::ControlToBackup => "control, to the backup",
                Lane::ControlToPrimary => "control, to the primary",
                Lane::BulkToBackup => "bulk, to the backup",
                Lane::BulkToPrimary => "bulk, to the primary",
                Lane::Trial => return None,
            };
            let feature = kind.feature().map_or("", Feature::name);
            let number = (*kind as u16).to_string();
            Some(vec![number, format!("{kind:?}"), way.to_owned(), feature.to_owned()])
        })
        .collect();
    assert_eq!(documented, kinds);
    let features: Vec<_> = include_str!("../../../../docs/protocol.md")
        .lines()
        .skip_while(|line| *line != "| bit | feature | what it adds |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| cells(line)[..2].to_vec())
        .collect();
    let known = Feature::ALL.iter().filter(|feature| **feature != Feature::Trial);
    let known: Vec<_> =
        known.map(|feature| vec![(*feature as u8).to_string(), feature.to_string()]).collect();
    assert_eq!(features, known);
}
