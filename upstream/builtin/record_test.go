package builtin

import (
	"bytes"
	"reflect"
	"testing"

	"secretagent/upstream"
)

func sampleRecord() *record {
	return &record{
		versionSet: versionSet{
			versions: []version{{"v1", 1, 11, false}, {"v2", 2, 12, true}, {"v3", 3, 13, false}},
			labels:   []label{{"ACSCurrent", "v3"}, {"ACSPrevious", "v1"}, {"green", "v3"}},
		},
		created: 1, updated: 1 << 40, plannedDelete: -1, key: 1<<32 - 1, encryptionKeyID: "4294967295",
		description: "text, ü", tags: []upstream.Tag{{Key: "a", Value: ""}, {Key: "b", Value: "x"}},
	}
}

func TestRecord(t *testing.T) {
	unnamed, cloud, instance, policy := sampleRecord(), sampleRecord(), sampleRecord(), sampleRecord()
	unnamed.key, cloud.encryptionKeyID, instance.dkmsInstanceID, policy.policy = 0, "alias/app", "kst-x", upstream.DefaultPolicy
	for want, format := range map[*record]byte{
		sampleRecord(): 1, {versionSet: versionSet{versions: []version{{id: "v"}}}}: 1, {}: 1,
		unnamed: 2, cloud: 2, instance: 2, policy: 2, {key: 1}: 2,
	} {
		b := encodeRecord(nil, want)
		got, err := decodeRecord(b)
		if err != nil || !reflect.DeepEqual(got, want) || b[0] != format {
			t.Errorf("got %+v in format %d, %v; want %+v", got, b[0], err, want)
		}
		for n := range b {
			if _, err := decodeRecord(b[:n]); err == nil {
				t.Errorf("the first %d of %d bytes are taken for a record", n, len(b))
			}
		}
		if _, err := decodeRecord(append(b, 0)); err == nil {
			t.Error("a byte too many is taken")
		}
	}
}

// TestOldRecord reads what programs wrote that did not keep what the creator of a secret named.
func TestOldRecord(t *testing.T) {
	const head, tail = "\x01" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x00\x00\x02" + "\x00\x00\x00\x00\x00\x00\x00\x00",
		"\x01d" + "\x00" + "\x01\x02v1" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x09" + "\x00" + "\x01\x0aACSCurrent\x00"
	for key, want := range map[string]string{"\x00\x00\x00\x00": "", "\x00\x00\x00\x07": "7"} {
		r, err := decodeRecord([]byte(head + key + tail))
		if err != nil || r.encryptionKeyID != want || r.versions[0].keyID != 9 {
			t.Errorf("got %+v, %v; want the key %q", r, err, want)
		}
	}
}

// TestBadRecords changes one thing in a good record; there is one encoding, so nothing else is
// a record.
func TestBadRecords(t *testing.T) {
	good := encodeRecord(nil, sampleRecord())
	bad := map[string][]byte{
		"another format":       append([]byte{3}, good[1:]...),
		"format 2 cut short":   append([]byte{2}, good[1:]...),
		"format 2 for no news": append(append([]byte{2}, good[1:]...), "\x0a4294967295\x00\x00"...),
		"a long form of zero":  append(bytes.Clone(good[:29]), append([]byte{0x80 | good[29], 0}, good[30:]...)...),
	}
	for name, mutate := range map[string]func(*record){
		"tags out of order":     func(r *record) { r.tags[0], r.tags[1] = r.tags[1], r.tags[0] },
		"a tag twice":           func(r *record) { r.tags[1].Key = "a" },
		"labels out of order":   func(r *record) { r.labels[0], r.labels[1] = r.labels[1], r.labels[0] },
		"a label twice":         func(r *record) { r.labels[1].stage = "ACSCurrent" },
		"a version twice":       func(r *record) { r.versions[1].id = "v1" },
		"a version without id":  func(r *record) { r.versions[1].id = "" },
		"a label on no version": func(r *record) { r.labels[1].holder = "v9" },
	} {
		r := sampleRecord()
		mutate(r)
		bad[name] = encodeRecord(nil, r)
	}
	for name, b := range bad {
		if got, err := decodeRecord(b); err == nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

// FuzzRecord: whatever decodes encodes to the same bytes.
func FuzzRecord(f *testing.F) {
	f.Add(encodeRecord(nil, sampleRecord()))
	f.Add(encodeRecord(nil, &record{}))
	f.Add(encodeRecord(nil, &record{encryptionKeyID: "alias/app", dkmsInstanceID: "kst-x", policy: "{}"}))
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			if r != nil {
				t.Error("a record beside an error")
			}
			return
		}
		if again := encodeRecord(nil, r); !bytes.Equal(again, b) {
			t.Errorf("decoded %x, encoded %x", b, again)
		}
	})
}
