package builtin

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

type meta struct {
	pageSize uint32
	root     uint64
	freelist uint64
	pages    uint64
	txid     uint64
}

func readMeta(r io.ReaderAt, offset int64) (meta, bool) {
	var b [pageHeaderLen + metaLen]byte
	if _, err := r.ReadAt(b[:], offset); err != nil {
		return meta{}, false
	}
	m := b[pageHeaderLen:]
	order := binary.NativeEndian
	sum := fnv.New64a()
	_, _ = sum.Write(m[:metaLen-8])
	if order.Uint32(m) != boltMagic || order.Uint32(m[4:]) != boltVersion || order.Uint64(m[metaLen-8:]) != sum.Sum64() {
		return meta{}, false
	}
	return meta{
		pageSize: order.Uint32(m[8:]), root: order.Uint64(m[16:]),
		freelist: order.Uint64(m[32:]), pages: order.Uint64(m[40:]), txid: order.Uint64(m[48:]),
	}, true
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
	m1, ok := readMeta(r, int64(m0.pageSize))
	if !ok || m1.pageSize != m0.pageSize {
		return damaged("its second header page is destroyed")
	}
	m := m0
	if m1.txid > m0.txid {
		m = m1
	}
	if m.pageSize < 1024 || m.pageSize > 1<<20 || m.pageSize&(m.pageSize-1) != 0 {
		return damaged("it names a page size of %d bytes", m.pageSize)
	}
	if m.pages < 3 || m.pages > uint64(size)/uint64(m.pageSize) {
		return damaged("the file has %d bytes, but needs %d pages of %d bytes", size, m.pages, m.pageSize)
	}
	w := &pageWalk{r: r, meta: m, seen: make([]uint64, m.pages/64+1)}
	w.todo = []subtree{{page: m.root}}
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
	if id < 2 || id >= w.meta.pages || n > w.meta.pages-id {
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
	if id < 2 || id >= w.meta.pages {
		return nil, damaged("page %d is out of range", id)
	}
	size := uint64(w.meta.pageSize)
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
	if _, err := w.r.ReadAt(p, int64(id*uint64(w.meta.pageSize))); err != nil {
		return nil, damaged("page %d cannot be read: %v", id, err)
	}
	return p, nil
}

func (w *pageWalk) visit(s subtree) error {
	p, err := w.read(s.page)
	if err != nil {
		return err
	}
	switch binary.NativeEndian.Uint16(p[8:]) {
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
	n := int(binary.NativeEndian.Uint16(p[10:]))
	if n == 0 {
		return damaged("page %d is empty", s.page)
	}
	children := make([]subtree, n)
	for i := range children {
		e, err := element(p, i, n, s.page)
		if err != nil {
			return err
		}
		key, _, err := span(p, e, e.at(0), e.at(1), 0, s.page, n)
		if err != nil {
			return err
		}
		children[i] = subtree{page: binary.NativeEndian.Uint64(e.b[8:]), min: key, max: s.max}
		if i > 0 {
			children[i-1].max = key
		}
		previous := s.min
		if i > 0 {
			previous = children[i-1].min
		}
		if err := inOrder(s, previous, key, i > 0); err != nil {
			return err
		}
	}
	w.todo = append(w.todo, children...)
	return nil
}

func (w *pageWalk) visitLeaf(s subtree, p []byte, inline bool) error {
	n := int(binary.NativeEndian.Uint16(p[10:]))
	previous := s.min
	for i := range n {
		e, err := element(p, i, n, s.page)
		if err != nil {
			return err
		}
		key, value, err := span(p, e, e.at(1), e.at(2), e.at(3), s.page, n)
		if err != nil {
			return err
		}
		if err := inOrder(s, previous, key, i > 0); err != nil {
			return err
		}
		previous = key
		switch e.at(0) {
		case 0:
		case bucketFlag:
			if inline {
				return damaged("page %d holds a bucket where none can be", s.page)
			}
			if err := w.visitBucket(s.page, value); err != nil {
				return err
			}
		default:
			return damaged("page %d holds an element of no known kind", s.page)
		}
	}
	return nil
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

// element is the i-th of n elements of a page.
type pageElement struct {
	b      []byte
	offset uint64
}

func (e pageElement) at(i int) uint32 { return binary.NativeEndian.Uint32(e.b[4*i:]) }

func element(p []byte, i, n int, page uint64) (pageElement, error) {
	if pageHeaderLen+n*elementLen > len(p) {
		return pageElement{}, damaged("page %d claims %d elements", page, n)
	}
	offset := pageHeaderLen + i*elementLen
	return pageElement{p[offset : offset+elementLen], uint64(offset)}, nil
}

// span returns key and value of an element, which must lie behind the elements of the page.
func span(p []byte, e pageElement, pos, keyLen, valueLen uint32, page uint64, n int) (key, value []byte, err error) {
	start := e.offset + uint64(pos)
	end := start + uint64(keyLen)
	valueEnd := end + uint64(valueLen)
	if keyLen == 0 || start < uint64(pageHeaderLen+n*elementLen) || valueEnd > uint64(len(p)) {
		return nil, nil, damaged("page %d holds an element that does not fit into it", page)
	}
	return p[start:end], p[end:valueEnd], nil
}

// inOrder checks that key follows previous, strictly where that is a key of the same page,
// and stays below the maximum.
func inOrder(s subtree, previous, key []byte, strictly bool) error {
	c := bytes.Compare(previous, key)
	if previous != nil && (c > 0 || c == 0 && strictly) || s.max != nil && bytes.Compare(key, s.max) >= 0 {
		return damaged("the keys on page %d are out of order", s.page)
	}
	return nil
}

// checkFreelist checks that every page is either in use or free, and no page both.
func (w *pageWalk) checkFreelist() error {
	p, err := w.read(w.meta.freelist)
	if err != nil {
		return err
	}
	if binary.NativeEndian.Uint16(p[8:]) != freelistFlag {
		return damaged("page %d is not the list of free pages", w.meta.freelist)
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
	for id := uint64(2); id < w.meta.pages; id++ {
		if w.seen[id/64]>>(id%64)&1 == 0 {
			return damaged("page %d is neither in use nor free", id)
		}
	}
	return nil
}
