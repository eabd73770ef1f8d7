package cache

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// The layout of a bbolt file, as far as it matters here; numbers in the machine's order.
//
//	page    id 8, flags 2, count 2, overflow 4; then count elements of 16 bytes
//	branch  element: 8 bytes about the key, page of the child 8
//	leaf    element: flags 4, position from here 4, key size 4, value size 4
//	bucket  the value of a leaf element with flag 1 begins with its root page 8
//	meta    pages 0 and 1: header, magic 4, version 4, page size 4, flags 4, root page 8,
//	        sequence 8, freelist 8, number of pages 8, transaction 8, checksum 8
const (
	boltHeader  = 16
	boltElement = 16
	boltMeta    = 64
	boltMagic   = 0xED0CDAED
	boltVersion = 2
	boltBranch  = 0x01
	boltLeaf    = 0x02
)

// checkTree checks that a walk through a bbolt file ends and stays inside the file. Other
// damage makes bbolt panic, which can be caught; a page that is its own descendant would
// make it run until the memory is gone, which cannot.
func checkTree(r io.ReaderAt, size int64) error {
	meta, pageSize, err := newestMeta(r)
	if err != nil {
		return err
	}
	order := binary.NativeEndian
	root, pages := order.Uint64(meta[16:]), order.Uint64(meta[40:])
	if pages > uint64(size)/pageSize {
		return fmt.Errorf("the file has %d bytes and should have %d pages of %d", size, pages, pageSize)
	}
	seen := make([]bool, pages)
	for todo := []uint64{root}; len(todo) > 0; {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if id < 2 || id >= pages {
			return fmt.Errorf("page %d is out of range", id)
		}
		if seen[id] {
			return fmt.Errorf("page %d is used twice", id)
		}
		seen[id] = true
		children, err := boltChildren(r, id, pages, pageSize)
		if err != nil {
			return fmt.Errorf("page %d: %w", id, err)
		}
		todo = append(todo, children...)
	}
	return nil
}

// newestMeta returns the meta page that bbolt works from.
func newestMeta(r io.ReaderAt) (newest []byte, pageSize uint64, err error) {
	order := binary.NativeEndian
	for i := range int64(2) {
		b := make([]byte, boltHeader+boltMeta)
		if _, err := r.ReadAt(b, i*int64(pageSize)); err != nil {
			return nil, 0, fmt.Errorf("header: %w", err)
		}
		m := b[boltHeader:]
		sum := fnv.New64a()
		_, _ = sum.Write(m[:boltMeta-8])
		if order.Uint32(m) != boltMagic || order.Uint32(m[4:]) != boltVersion || order.Uint64(m[boltMeta-8:]) != sum.Sum64() {
			return nil, 0, fmt.Errorf("header %d is destroyed", i)
		}
		pageSize = uint64(order.Uint32(m[8:]))
		if pageSize < 1024 || pageSize > 1<<20 {
			return nil, 0, errors.New("the page size is impossible")
		}
		if newest == nil || order.Uint64(m[48:]) > order.Uint64(newest[48:]) {
			newest = m
		}
	}
	return newest, pageSize, nil
}

// boltChildren returns the pages that page id leads to.
func boltChildren(r io.ReaderAt, id, pages, pageSize uint64) ([]uint64, error) {
	order := binary.NativeEndian
	p := make([]byte, pageSize)
	if _, err := r.ReadAt(p, int64(id*pageSize)); err != nil {
		return nil, err
	}
	count, overflow := int(order.Uint16(p[10:])), uint64(order.Uint32(p[12:]))
	if order.Uint64(p) != id || overflow >= pages-id {
		return nil, errors.New("it is not in its place")
	}
	if overflow > 0 {
		p = make([]byte, (overflow+1)*pageSize)
		if _, err := r.ReadAt(p, int64(id*pageSize)); err != nil {
			return nil, err
		}
	}
	if boltHeader+count*boltElement > len(p) {
		return nil, errors.New("it has more elements than fit")
	}
	var children []uint64
	for i := range count {
		at := boltHeader + i*boltElement
		element := p[at:]
		switch order.Uint16(p[8:]) {
		case boltBranch:
			children = append(children, order.Uint64(element[8:]))
		case boltLeaf:
			key := uint64(at) + uint64(order.Uint32(element[4:]))
			data := key + uint64(order.Uint32(element[8:]))
			end := data + uint64(order.Uint32(element[12:]))
			if end > uint64(len(p)) {
				return nil, errors.New("an element lies outside")
			}
			if order.Uint32(element) != 1 {
				continue
			}
			if end-data < 16 {
				return nil, errors.New("a bucket is too short")
			}
			if root := order.Uint64(p[data:]); root != 0 {
				children = append(children, root)
			}
		default:
			return nil, errors.New("it is of no known kind")
		}
	}
	return children, nil
}
