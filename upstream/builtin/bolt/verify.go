package bolt

import (
	"bytes"
	"encoding/binary"
	"hash/fnv"
	"io"
)

// The layout of a bbolt file, as far as it is checked here. All numbers are in the byte order
// of the machine.
//
//	page     16 bytes  id 8, flags 2, count 2, overflow 4; then elements; then their data
//	         a page with overflow n covers n further pages
//	meta     in pages 0 and 1, after the page header:
//	         magic 4, version 4, page size 4, flags 4, root bucket 16, freelist page 8,
//	         number of pages 8, transaction 8, checksum of all that 8
//	bucket   16 bytes  root page 8, sequence 8; root page 0: a page follows inline
//	branch   16 bytes  position of the key from here 4, its size 4, page 8
//	leaf     16 bytes  flags 4, position 4, key size 4, value size 4
//	freelist page ids of 8 bytes; a count of 0xffff means that the first is the count
const (
	pageHeaderLen   = 16
	elementLen      = 16
	bucketHeaderLen = 16
	metaLen         = 64

	boltMagic   = 0xED0CDAED
	boltVersion = 2

	branchFlag   = 0x01
	leafFlag     = 0x02
	freelistFlag = 0x10
	bucketFlag   = 0x01 // of a leaf element
)

// meta is the content of a header page.
type meta struct {
	Magic, Version, PageSize, Flags uint32
	Root, Sequence                  uint64
	Freelist, Pages, Txid, Checksum uint64
}

func readMeta(r io.ReaderAt, offset int64) (meta, bool) {
	var b [metaLen]byte
	if _, err := r.ReadAt(b[:], offset+pageHeaderLen); err != nil {
		return meta{}, false
	}
	var m meta
	_, _ = binary.Decode(b[:], binary.NativeEndian, &m) // as long as b
	sum := fnv.New64a()
	_, _ = sum.Write(b[:metaLen-8])
	return m, m.Magic == boltMagic && m.Version == boltVersion && m.Checksum == sum.Sum64()
}

// verifyPages checks that a file of that size is a bbolt database that bbolt can be trusted
// with: both headers intact, the file as long as they say, every page of the tree in place
// and well-formed, keys in order, and every page either part of the tree or free.
func verifyPages(r io.ReaderAt, size int64) error {
	if size == 0 {
		return damaged("the file is empty; where it never held a secret, remove it")
	}
	m0, ok := readMeta(r, 0)
	if !ok {
		return damaged("its first header page is destroyed, or the file is not a secretagent database")
	}
	m1, ok := readMeta(r, int64(m0.PageSize))
	if !ok || m1.PageSize != m0.PageSize {
		return damaged("its second header page is destroyed")
	}
	m := m0
	if m1.Txid > m0.Txid {
		m = m1
	}
	if m.PageSize < 1024 || m.PageSize > 1<<20 || m.PageSize&(m.PageSize-1) != 0 {
		return damaged("it names a page size of %d bytes", m.PageSize)
	}
	if m.Pages < 3 || m.Pages > uint64(size)/uint64(m.PageSize) {
		return damaged("the file has %d bytes, but needs %d pages of %d bytes", size, m.Pages, m.PageSize)
	}
	w := &pageWalk{r: r, meta: m, seen: make([]uint64, m.Pages/64+1)}
	w.todo = []subtree{{page: m.Root}}
	for len(w.todo) > 0 {
		next := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		if err := w.visit(next); err != nil {
			return err
		}
	}
	return w.checkFreelist()
}

// pageWalk visits each page of the tree once. It does not recurse, and a page that is met
// twice ends it, so damage cannot make it run on.
type pageWalk struct {
	r    io.ReaderAt
	meta meta
	seen []uint64 // one bit for each page of the tree or the freelist
	todo []subtree
	buf  []byte
}

// subtree is a page whose keys must lie in [min, max); nil means unbounded.
type subtree struct {
	page     uint64
	min, max []byte
}

// mark notes that n pages from id are in use.
func (w *pageWalk) mark(id, n uint64) error {
	if id < 2 || id >= w.meta.Pages || n > w.meta.Pages-id {
		return damaged("page %d is out of range", id)
	}
	for ; n > 0; id, n = id+1, n-1 {
		if w.seen[id/64]>>(id%64)&1 != 0 {
			return damaged("page %d is used twice", id)
		}
		w.seen[id/64] |= 1 << (id % 64)
	}
	return nil
}

// read returns page id with its overflow pages, valid until the next read.
func (w *pageWalk) read(id uint64) ([]byte, error) {
	if id < 2 || id >= w.meta.Pages {
		return nil, damaged("page %d is out of range", id)
	}
	size := uint64(w.meta.PageSize)
	p, err := w.readAt(id, size)
	if err != nil {
		return nil, err
	}
	if binary.NativeEndian.Uint64(p) != id {
		return nil, damaged("page %d is not in its place", id)
	}
	n := uint64(binary.NativeEndian.Uint32(p[12:])) + 1
	if err := w.mark(id, n); err != nil {
		return nil, err
	}
	if n == 1 {
		return p, nil
	}
	return w.readAt(id, n*size)
}

func (w *pageWalk) readAt(id, n uint64) ([]byte, error) {
	if uint64(cap(w.buf)) < n {
		w.buf = make([]byte, n)
	}
	p := w.buf[:n]
	if _, err := w.r.ReadAt(p, int64(id*uint64(w.meta.PageSize))); err != nil {
		return nil, damaged("page %d cannot be read: %v", id, err)
	}
	return p, nil
}

func (w *pageWalk) visit(s subtree) error {
	p, err := w.read(s.page)
	if err != nil {
		return err
	}
	switch kind := binary.NativeEndian.Uint16(p[8:]); kind {
	case branchFlag:
		w.buf = nil // the keys stay in use
		return w.visitBranch(s, p)
	case leafFlag:
		return w.visitLeaf(s, p, false)
	default:
		return damaged("page %d is of no known kind", s.page)
	}
}

func (w *pageWalk) visitBranch(s subtree, p []byte) error {
	all, err := s.elements(p, true)
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return damaged("page %d is empty", s.page)
	}
	for i, e := range all {
		child := subtree{page: e.child, min: e.key, max: s.max}
		if i+1 < len(all) {
			child.max = all[i+1].key
		}
		w.todo = append(w.todo, child)
	}
	return nil
}

func (w *pageWalk) visitLeaf(s subtree, p []byte, inline bool) error {
	all, err := s.elements(p, false)
	for i := 0; err == nil && i < len(all); i++ {
		switch e := all[i]; {
		case e.flags == 0:
		case e.flags == bucketFlag && !inline:
			err = w.visitBucket(s.page, e.value)
		default:
			err = damaged("page %d holds an element of no known kind", s.page)
		}
	}
	return err
}

func (w *pageWalk) visitBucket(page uint64, value []byte) error {
	if len(value) < bucketHeaderLen {
		return damaged("page %d holds a bucket that is cut short", page)
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		w.todo = append(w.todo, subtree{page: root})
		return nil
	}
	inline := value[bucketHeaderLen:]
	if len(inline) < pageHeaderLen || binary.NativeEndian.Uint16(inline[8:]) != leafFlag {
		return damaged("page %d holds a bucket that is cut short", page)
	}
	return w.visitLeaf(subtree{page: page}, inline, true)
}

// pageElement is one element of a page.
type pageElement struct {
	key   []byte
	child uint64 // of a branch
	flags uint32 // of a leaf
	value []byte // of a leaf
}

// elements returns the elements of a page. Their data must lie behind the last of them, and
// their keys in order and in the range of the subtree.
func (s subtree) elements(p []byte, branch bool) ([]pageElement, error) {
	all := make([]pageElement, binary.NativeEndian.Uint16(p[10:]))
	data, size := uint64(pageHeaderLen+len(all)*elementLen), uint64(len(p))
	if data > size {
		return nil, damaged("page %d claims %d elements", s.page, len(all))
	}
	previous := s.min
	for i := range all {
		offset := pageHeaderLen + i*elementLen
		field := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(p[offset+4*i:])) }
		e := &all[i]
		var at, keyLen, valueLen uint64
		if branch {
			at, keyLen, e.child = field(0), field(1), binary.NativeEndian.Uint64(p[offset+8:])
		} else {
			e.flags, at, keyLen, valueLen = uint32(field(0)), field(1), field(2), field(3)
		}
		at += uint64(offset)
		if keyLen == 0 || at < data || at+keyLen+valueLen > size {
			return nil, damaged("page %d holds an element that does not fit into it", s.page)
		}
		e.key, e.value = p[at:at+keyLen], p[at+keyLen:at+keyLen+valueLen]
		// The first key may be the least one of the subtree; the others follow one another.
		order := bytes.Compare(previous, e.key)
		if previous != nil && (order > 0 || order == 0 && i > 0) || s.max != nil && bytes.Compare(e.key, s.max) >= 0 {
			return nil, damaged("the keys on page %d are out of order", s.page)
		}
		previous = e.key
	}
	return all, nil
}

// checkFreelist checks that every page is either in use or free, and no page both.
func (w *pageWalk) checkFreelist() error {
	p, err := w.read(w.meta.Freelist)
	if err != nil {
		return err
	}
	if binary.NativeEndian.Uint16(p[8:]) != freelistFlag {
		return damaged("page %d is not the list of free pages", w.meta.Freelist)
	}
	ids := p[pageHeaderLen:]
	n := uint64(binary.NativeEndian.Uint16(p[10:]))
	if n == 0xffff {
		n, ids = binary.NativeEndian.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids)/8) {
		return damaged("the list of free pages is cut short")
	}
	for i := range n {
		if err := w.mark(binary.NativeEndian.Uint64(ids[8*i:]), 1); err != nil {
			return err
		}
	}
	for id := uint64(2); id < w.meta.Pages; id++ {
		if w.seen[id/64]>>(id%64)&1 == 0 {
			return damaged("page %d is neither in use nor free", id)
		}
	}
	return nil
}
