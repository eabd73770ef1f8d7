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
		created: 1, updated: 1 << 40, plannedDelete: -1, key: 1<<32 - 1,
		description: "text, ü", tags: []upstream.Tag{{Key: "a", Value: ""}, {Key: "b", Value: "x"}},
	}
}

func TestRecord(t *testing.T) {
	for _, want := range []*record{sampleRecord(), {versionSet: versionSet{versions: []version{{id: "v"}}}}, {}} {
		b := encodeRecord(nil, want)
		got, err := decodeRecord(b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
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

// TestBadRecords changes one thing in a good record; there is one encoding, so nothing else is
// a record.
func TestBadRecords(t *testing.T) {
	good := encodeRecord(nil, sampleRecord())
	bad := map[string][]byte{
		"another format":      append([]byte{2}, good[1:]...),
		"a long form of zero": append(bytes.Clone(good[:29]), append([]byte{0x80 | good[29], 0}, good[30:]...)...),
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
