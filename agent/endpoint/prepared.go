package endpoint

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"sync/atomic"

	"secretagent/upstream"
)

// What is kept encoded of one value is bounded by the number of forms and fields, and by their
// size, so that it cannot be much more than the cache has counted for it.
const (
	maxForms     = 32
	maxFormsSize = 4 // times the size of the value, and of what is around it
	formOverhead = 1 << 10
)

// preparedSize is what one prepared form costs beside its bytes.
const preparedSize = 160

// prepared is what answers with one value have in common. It is kept with the value in the
// cache, and forms are added as they are asked for.
type prepared struct {
	etag    [24]byte // quotes included
	forms   atomic.Pointer[form]
	derived *upstream.Derived // where all of this is kept; nil: nowhere

	// alone says that the version of this value, whose id is v and a number, has that number to
	// itself: there is no version whose id is the number alone.
	alone atomic.Bool
}

// form is a value, or one field of it, in one format. It is a link of a list.
type form struct {
	body
	format Format
	field  string // empty: the whole value
	next   *form
	length int // of the list from here
}

// preparedOf returns what is prepared for a's value.
func (s *Server) preparedOf(a *upstream.Answer) *prepared {
	if a.Derived == nil {
		return &prepared{etag: s.etagOf(a.Value)}
	}
	if p, ok := a.Derived.Load().(*prepared); ok {
		return p
	}
	a.Derived.CompareAndSwap(nil, &prepared{etag: s.etagOf(a.Value), derived: a.Derived})
	return a.Derived.Load().(*prepared)
}

// sizeOf returns how long a form is that is prepared; 0: it is not.
func (p *prepared) sizeOf(f Format, field string) int {
	for e := p.forms.Load(); e != nil; e = e.next {
		if e.format == f && e.field == field {
			return len(e.data)
		}
	}
	return 0
}

// body returns v, or the field of it that is named, in the format.
func (p *prepared) body(v *upstream.SecretValue, f Format, field string) (*body, error) {
	first := p.forms.Load()
	for e := first; e != nil; e = e.next {
		if e.format == f && e.field == field {
			return &e.body, nil
		}
	}
	part := v
	if field != "" {
		var err error
		if part, err = fieldOf(v, field); err != nil {
			return nil, err
		}
	}
	more := &form{body: shapes[f].value(part), format: f, field: strings.Clone(field), next: first, length: 1}
	if first != nil {
		more.length += first.length
	}
	// When another was faster to add a form, the next request tries again.
	if p.derived != nil && more.length <= maxForms && p.derived.Size()+len(more.data) <= maxFormsSize*(v.SecretData.Size()+formOverhead) && p.forms.CompareAndSwap(first, more) {
		n := preparedSize
		if raw := v.SecretData.Reveal(); len(raw) == 0 || len(more.data) == 0 || &more.data[0] != &raw[0] { // memory of its own
			n += cap(more.data)
		}
		p.derived.Grow(n)
	}
	return &more.body, nil
}

// etagOf returns the entity tag of a value, quotes included: a hash under a key that only this
// process knows, since a plain one would let its reader test guesses of the value.
func (s *Server) etagOf(v *upstream.SecretValue) (tag [24]byte) {
	mac := hmac.New(sha256.New, s.etagKey[:])
	data := v.SecretData.Reveal()
	fmt.Fprintf(mac, "%q%q%q%q%d:", v.SecretName, v.VersionID, v.SecretDataType, v.VersionStages, len(data))
	mac.Write(data)
	tag[0], tag[23] = '"', '"'
	base64.RawURLEncoding.Encode(tag[1:23], mac.Sum(nil)[:16])
	return tag
}

// etagMatches reports whether an If-None-Match header names etag.
func etagMatches(header, etag []byte) bool {
	list := view(header)
	for list != "" {
		var item string
		item, list, _ = strings.Cut(list, ",")
		item = strings.TrimPrefix(strings.Trim(item, " \t"), "W/")
		if item == "*" || item == view(etag) {
			return true
		}
	}
	return false
}
