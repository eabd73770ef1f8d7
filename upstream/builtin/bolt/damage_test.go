package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"secretagent/upstream"
	"secretagent/upstream/builtin"
)

const samplePolicy = `{"Version":"1","Statement":[{"Effect":"Allow","Principal":{"RAM":["x"]},"Action":"kms:*","Resource":"*"}]}`

// sample is a database with everything in it that a file can hold, and what it holds.
type sample struct {
	opts   Options
	file   []byte
	values map[upstream.SecretRef]string
	names  []upstream.SecretName
	cloud  upstream.SecretName // the one with all that only the cloud has
}

func newSample(t testing.TB) *sample {
	t.Helper()
	sm := &sample{opts: testOptions(t), values: map[upstream.SecretRef]string{}}
	sm.opts.Emulate = emulateAll
	s := mustOpen(t, sm.opts)
	s.db.bolt.NoSync = true // what is durable is for other tests
	for i := range 30 {
		name := fmt.Sprintf("secret/%02d", i)
		mustCreate(t, s, name, "v0", name)
		size := 97 * i / 3
		if i%10 == 7 {
			size = 2500 // pages of their own
		}
		for v := range 1 + i%4 {
			id, data := fmt.Sprint("v", v), fmt.Sprint(name, " ", v, strings.Repeat(".", size*v))
			if v > 0 {
				mustPut(t, s, name, id, data)
			} else {
				data = name
			}
			sm.values[upstream.SecretRef{SecretName: upstream.SecretName(name), VersionID: upstream.VersionID(id)}] = data
		}
		sm.names = append(sm.names, upstream.SecretName(name))
	}
	sm.cloud = "secret/cloud"
	sm.names = append(sm.names, sm.cloud)
	must(t, only(s.CreateSecret(t.Context(), upstream.CreateSecretInput{
		SecretName: sm.cloud, VersionID: "v0", SecretData: secret("x"), EncryptionKeyID: "key-1", DKMSInstanceID: "kst-1", Policy: samplePolicy,
	})))
	mustCreate(t, s, "secret/gone", "v0", "leaves free pages")
	forceDelete(t, s, "secret/gone")
	must(t, s.Close())
	sm.file = readFile(t, sm.opts.Database)
	// The file is longer than what is in use; the rest would only slow the tests down.
	sm.file = sm.file[:usedBytes(t, sm.file)]
	return sm
}

// usedBytes is how much of a file the newer of its headers speaks of.
func usedBytes(t testing.TB, file []byte) int {
	t.Helper()
	m, ok := readMeta(bytes.NewReader(file), 0)
	m1, ok1 := readMeta(bytes.NewReader(file), int64(m.PageSize))
	if !ok || !ok1 {
		t.Fatal("the headers of the sample cannot be read")
	}
	return int(max(m.Pages, m1.Pages) * uint64(m.PageSize))
}

// check opens a changed copy of the file. Whatever the change, opening or a read reports
// damage, or the right value comes out. It returns whether something was reported.
func (sm *sample) check(t *testing.T, what string, content []byte, write bool) (reported bool) {
	t.Helper()
	opts := sm.opts
	opts.Database = filepath.Join(filepath.Dir(sm.opts.Database), "damaged.db")
	must(t, os.WriteFile(opts.Database, content, 0o600))
	s, err := Open(opts)
	if err != nil {
		sm.clear(t, what, err)
		return true
	}
	defer func() { _ = s.Close() }()
	s.db.bolt.NoSync = true // what is durable is for other tests
	ctx := context.Background()
	for ref, want := range sm.values {
		v, err := s.GetSecretValue(ctx, ref)
		switch {
		case err != nil:
			sm.clear(t, what, err)
			reported = true
		case string(v.SecretData.Reveal()) != want || v.VersionID != ref.VersionID:
			t.Errorf("%s: wrong value for %s", what, ref)
		}
	}
	for _, name := range sm.names {
		if m, err := s.DescribeSecret(ctx, name, true); err != nil || m.SecretName != name {
			t.Errorf("%s: describe %s: %v", what, name, err)
		}
	}
	meta, err := s.DescribeSecret(ctx, sm.cloud, false)
	policy, policyErr := s.GetSecretPolicy(ctx, sm.cloud)
	if err != nil || policyErr != nil || meta.EncryptionKeyID != "key-1" || meta.DKMSInstanceID != "kst-1" || policy != samplePolicy {
		t.Errorf("%s: %s has key %q, instance %q, policy %s; %v, %v", what, sm.cloud, meta.EncryptionKeyID, meta.DKMSInstanceID, policy, err, policyErr)
	}
	if out, err := s.ListSecrets(ctx, upstream.ListSecretsInput{}); err != nil || out.TotalCount != len(sm.names) {
		t.Errorf("%s: %d secrets, %v", what, out.TotalCount, err)
	}
	if write {
		for _, name := range sm.names {
			if err := putter(s, string(name), "new", "new")(); err != nil {
				sm.clear(t, what, err)
			}
		}
	}
	return reported
}

// clear checks that an error is one that a person can act on.
func (sm *sample) clear(t *testing.T, what string, err error) {
	t.Helper()
	text := err.Error()
	known := errors.Is(err, builtin.ErrDamaged) && errors.Is(err, upstream.ErrInternal) && strings.Contains(text, "damaged") && strings.Contains(text, "copy")
	foreign := strings.Contains(text, "not a secretagent database") || strings.Contains(text, "has format")
	if !known && !foreign {
		t.Errorf("%s: unclear error: %v", what, err)
	}
}

func TestFlippedBits(t *testing.T) {
	t.Parallel()
	sm := newSample(t)
	pageSize := os.Getpagesize()
	step := 3
	if testing.Short() {
		step = 15
	}
	random := rand.New(rand.NewPCG(1, 2))
	var offsets []int
	for page := 0; page < len(sm.file); page += pageSize {
		for i := 0; i < pageHeaderLen; i += step {
			offsets = append(offsets, page+i)
		}
		for range 30 / step { // elements, keys, values, free space
			offsets = append(offsets, page+random.IntN(pageSize))
		}
	}
	reported := 0
	for i, offset := range offsets {
		damaged := bytes.Clone(sm.file)
		damaged[offset] ^= 1 << random.IntN(8)
		if sm.check(t, fmt.Sprintf("a bit of byte %d flipped", offset), damaged, i%16 == 0) {
			reported++
		}
	}
	if reported < len(offsets)/10 {
		t.Errorf("only %d of %d were noticed: the test shows nothing", reported, len(offsets))
	}
}

func TestOverwrittenPages(t *testing.T) {
	t.Parallel()
	sm := newSample(t)
	pageSize := os.Getpagesize()
	pages := len(sm.file) / pageSize
	random := rand.New(rand.NewPCG(3, 4))
	noise := func(b []byte) {
		for i := range b {
			b[i] = byte(random.Uint32())
		}
	}
	fills := []struct {
		what string
		fill func([]byte)
	}{
		{"zeros", func(b []byte) { clear(b) }},
		{"ones", func(b []byte) { copy(b, bytes.Repeat([]byte{0xff}, len(b))) }},
		{"noise", noise},
		{"another page", func(b []byte) { copy(b, sm.file[random.IntN(pages)*pageSize:][:pageSize]) }},
		{"noise behind the header", func(b []byte) { noise(b[pageHeaderLen:]) }},
	}
	for page := range pages {
		for _, f := range fills {
			damaged := bytes.Clone(sm.file)
			f.fill(damaged[page*pageSize:][:pageSize])
			sm.check(t, fmt.Sprintf("page %d overwritten with %s", page, f.what), damaged, false)
		}
	}
}

func TestTruncated(t *testing.T) {
	sm := newSample(t)
	pageSize := os.Getpagesize()
	lengths := []int{0, 1, 15, 16, 79, 80, 4095, 8191}
	for at := 0; at <= len(sm.file); at += pageSize {
		lengths = append(lengths, at, max(0, at-1), at+1, at+pageSize/2)
	}
	for _, n := range lengths {
		if n < len(sm.file) {
			sm.check(t, fmt.Sprintf("cut to %d bytes", n), sm.file[:n], false)
		}
	}
	// What the headers do not speak of is not needed.
	if sm.check(t, "as it is", sm.file, true) {
		t.Error("the whole file is reported as damaged")
	}
}

// TestCyclicPages makes a page its own descendant, which bbolt would follow without end.
func TestCyclicPages(t *testing.T) {
	sm := newSample(t)
	pageSize := os.Getpagesize()
	noticed := 0
	for page := 2 * pageSize; page < len(sm.file); page += pageSize {
		if binary.NativeEndian.Uint16(sm.file[page+8:]) != branchFlag {
			continue
		}
		damaged := bytes.Clone(sm.file)
		binary.NativeEndian.PutUint64(damaged[page+pageHeaderLen+8:], uint64(page/pageSize))
		if sm.check(t, "a page that contains itself", damaged, false) { // others are free pages
			noticed++
		}
	}
	if noticed == 0 {
		t.Error("no cycle was noticed")
	}
}

// TestExchangedCiphertexts puts sealed things in the place of others; the structure of the file
// is flawless.
func TestExchangedCiphertexts(t *testing.T) {
	swap := func(bucket []byte, a, b string) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			bk := tx.Bucket(bucket)
			va, vb := bytes.Clone(bk.Get([]byte(a))), bytes.Clone(bk.Get([]byte(b)))
			if va == nil || vb == nil {
				return errors.New("nothing there to exchange")
			}
			return errors.Join(bk.Put([]byte(a), vb), bk.Put([]byte(b), va))
		}
	}
	for _, test := range []struct {
		name   string
		atRead bool // noticed when it is read, and not when the database is opened
		change func(*bbolt.Tx) error
	}{
		{"values of two versions", true, swap(buckets[builtin.Values], "secret/03\x00v0", "secret/03\x00v1")},
		{"values of two secrets", true, swap(buckets[builtin.Values], "secret/03\x00v0", "secret/04\x00v0")},
		{"metadata of two secrets", false, swap(buckets[builtin.Records], "secret/03", "secret/07")},
		{"metadata put in the place of a value", true, func(tx *bbolt.Tx) error {
			return tx.Bucket(buckets[builtin.Values]).Put([]byte("secret/03\x00v0"), tx.Bucket(buckets[builtin.Records]).Get([]byte("secret/03")))
		}},
		{"a value removed", false, func(tx *bbolt.Tx) error { return tx.Bucket(buckets[builtin.Values]).Delete([]byte("secret/03\x00v0")) }},
		{"a value added", false, func(tx *bbolt.Tx) error {
			return tx.Bucket(buckets[builtin.Values]).Put([]byte("secret/03\x00zz"), []byte("x"))
		}},
		{"a value of no secret", false, func(tx *bbolt.Tx) error {
			return tx.Bucket(buckets[builtin.Values]).Put([]byte("zz\x00v"), []byte("x"))
		}},
		{"a value of no secret in between", false, func(tx *bbolt.Tx) error {
			return tx.Bucket(buckets[builtin.Values]).Put([]byte("secret\x00v"), []byte("x"))
		}},
		{"the note of a key", false, func(tx *bbolt.Tx) error {
			bk := tx.Bucket(buckets[builtin.Keys])
			k, _ := bk.Cursor().First()
			return bk.Put(k, tx.Bucket(buckets[builtin.Records]).Get([]byte("secret/03")))
		}},
	} {
		sm := newSample(t)
		sm.change(t, test.change)
		if !sm.check(t, test.name, readFile(t, sm.opts.Database), false) {
			t.Errorf("%s: not noticed", test.name)
		}
		// Only what is inside a value is left to the read.
		s, err := Open(sm.opts)
		if err == nil {
			_ = s.Close()
		}
		if (err == nil) != test.atRead {
			t.Errorf("%s: Open answers %v", test.name, err)
		}
	}
}

// change changes the file as another program would.
func (sm *sample) change(t *testing.T, change func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(sm.opts.Database, 0o600, &bbolt.Options{NoSync: true})
	must(t, err)
	must(t, errors.Join(db.Update(change), db.Close()))
}

// TestDamageNamesTheSecret reads one secret whose value was changed, and others that are whole.
func TestDamageNamesTheSecret(t *testing.T) {
	sm := newSample(t)
	sm.change(t, func(tx *bbolt.Tx) error {
		key := []byte("secret/03\x00v1")
		sealed := bytes.Clone(tx.Bucket(buckets[builtin.Values]).Get(key))
		sealed[len(sealed)-1] ^= 1
		return tx.Bucket(buckets[builtin.Values]).Put(key, sealed)
	})
	s := mustOpen(t, sm.opts)
	for range 2 { // all else goes on
		_, err := s.GetSecretValue(context.Background(), upstream.SecretRef{SecretName: "secret/03", VersionID: "v1"})
		wantErr(t, err, builtin.ErrDamaged)
		if err != nil && !strings.Contains(err.Error(), `secret "secret/03", version "v1"`) {
			t.Errorf("the error does not name secret and version: %v", err)
		}
	}
	wantValue(t, s, "secret/04", "secret/04")
	// Nothing can be compared with a value that cannot be read.
	wantErr(t, putter(s, "secret/03", "v1", "x")(), builtin.ErrDamaged)
	mustPut(t, s, "secret/03", "v9", "good again")
	wantValue(t, s, "secret/03", "good again")
}

// TestDamageOnAFullPage lists the tags of secrets of which the first one was changed: a page that
// is full before the last secret does not hide that the first one's rows are missing.
func TestDamageOnAFullPage(t *testing.T) {
	s := mustOpen(t, testOptions(t))
	var tags []upstream.Tag
	for i := range upstream.MaxTags {
		tags = append(tags, upstream.Tag{Key: fmt.Sprint("k", i), Value: "v"})
	}
	for i := range upstream.TagRowsPerPage/upstream.MaxTags + 2 {
		name := fmt.Sprintf("secret/%02d", i)
		mustCreate(t, s, name, "v1", "x")
		must(t, s.TagResources(t.Context(), []upstream.SecretName{upstream.SecretName(name)}, tags))
	}
	must(t, s.db.bolt.Update(func(tx *bbolt.Tx) error {
		key := []byte("secret/00")
		sealed := bytes.Clone(tx.Bucket(buckets[builtin.Records]).Get(key))
		sealed[len(sealed)-1] ^= 1
		return tx.Bucket(buckets[builtin.Records]).Put(key, sealed)
	}))
	wantErr(t, only(s.ListTagResources(t.Context(), upstream.ListTagResourcesInput{Tags: tags})), builtin.ErrDamaged)
}

// TestTruncatedUnderneath cuts the file while it is mapped: the process survives, every call
// ends with an error, and Close releases the lock.
func TestTruncatedUnderneath(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a mapped file cannot be cut there")
	}
	for _, keep := range []int64{0, 2} {
		t.Run(fmt.Sprint(keep, " pages left"), func(t *testing.T) {
			t.Parallel()
			sm := newSample(t)
			s, err := Open(sm.opts)
			must(t, err)
			must(t, os.Truncate(sm.opts.Database, keep*int64(os.Getpagesize())))
			for range 3 {
				_, err := get(s, "secret/03")
				wantErr(t, err, builtin.ErrDamaged)
			}
			wantErr(t, putter(s, "secret/03", "new", "new")(), builtin.ErrDamaged)
			_ = s.Close()
			must(t, os.WriteFile(sm.opts.Database, sm.file, 0o600))
			wantValue(t, mustOpen(t, sm.opts), "secret/04", "secret/04")
		})
	}
}

func TestOpenForeignFiles(t *testing.T) {
	foreign := filepath.Join(t.TempDir(), "foreign.db")
	db, err := bbolt.Open(foreign, 0o600, nil)
	must(t, err)
	must(t, db.Close())
	bolt := string(readFile(t, foreign))
	for _, test := range []struct{ name, content, want string }{
		{"empty", "", "empty"},
		{"text", strings.Repeat("This is not a database. ", 1000), "not a secretagent database"},
		{"another bbolt database", bolt, "not a secretagent database"},
	} {
		opts := testOptions(t)
		must(t, errors.Join(os.MkdirAll(filepath.Dir(opts.Database), 0o700), os.WriteFile(opts.Database, []byte(test.content), 0o600)))
		if _, err := Open(opts); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v", test.name, err)
		}
		if exists(opts.Keyring) {
			t.Errorf("%s: a keyring was created all the same", test.name)
		}
		if string(readFile(t, opts.Database)) != test.content {
			t.Errorf("%s: the file was changed", test.name)
		}
	}
}

// FuzzDatabase opens files of any content: there is an error or a store, never a panic, and
// opening ends.
func FuzzDatabase(f *testing.F) {
	f.Add(uint32(0), []byte{0})
	f.Add(uint32(4096*3), []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	sm := newSample(f)
	f.Fuzz(func(t *testing.T, offset uint32, patch []byte) {
		damaged := bytes.Clone(sm.file)
		copy(damaged[int(offset)%len(damaged):], patch)
		own := *sm
		own.opts.Database = filepath.Join(t.TempDir(), "secrets.db")
		own.check(t, fmt.Sprintf("%d bytes at %d", len(patch), offset), damaged, false)
	})
}
