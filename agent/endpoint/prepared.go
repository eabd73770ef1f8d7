package endpoint

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"strings"
	"sync/atomic"

	"secretagent/upstream"
)

// maxOthers bounds how many other forms and fields of one value are kept encoded.
const maxOthers = 32

// preparedSize is what one prepared form costs beside its bytes.
const preparedSize = 160

// prepared is what answers with one value have in common. It lives in the value's memo. The
// form that was asked for first sits beside the tag, where the processor finds it without
// another trip to memory; the others are added as they are needed.
type prepared struct {
	etag   [24]byte // quotes included
	first  body
	format Format                      // of first
	others atomic.Pointer[[]otherBody] // replaced, never modified
	memo   *upstream.Derived           // where all of this is kept; nil: nowhere
}

type otherBody struct {
	format Format
	field  string // empty: the whole value
	body   *body
}

// preparedOf returns what is prepared for a's value. Whoever needs it first prepares it, in
// format f.
func (s *Server) preparedOf(a *upstream.Answer, f Format) *prepared {
	if a.Derived != nil {
		if p, ok := a.Derived.Load().(*prepared); ok {
			return p
		}
	}
	p := &prepared{etag: s.etagOf(a.Value), first: *shape(a.Value, f), format: f, memo: a.Derived}
	if a.Derived != nil {
		if !a.Derived.CompareAndSwap(nil, p) {
			if other, ok := a.Derived.Load().(*prepared); ok {
				return other
			}
		}
		p.grow(a.Value, &p.first)
	}
	return p
}

// grow tells the cache what keeping b costs.
func (p *prepared) grow(v *upstream.SecretValue, b *body) {
	n := preparedSize
	if own := v.SecretData.Reveal(); len(own) == 0 || len(b.data) == 0 || &own[0] != &b.data[0] {
		n += len(b.data)
	}
	if p.memo != nil {
		p.memo.Grow(n)
	}
}

// wanted returns the part of v, in the format, that q asks for; errNoField when there is none.
func (p *prepared) wanted(v *upstream.SecretValue, q *query) (*body, error) {
	if q.field != "" {
		return p.otherOf(v, q.format, q.field)
	}
	return p.bodyOf(v, q.format), nil
}

func (p *prepared) bodyOf(v *upstream.SecretValue, f Format) *body {
	if f == p.format {
		return &p.first
	}
	b, _ := p.otherOf(v, f, "") // only fields can be missing
	return b
}

// otherOf returns a form that is not the first: of a field, or of the whole value when field
// is empty.
func (p *prepared) otherOf(v *upstream.SecretValue, f Format, field string) (b *body, err error) {
	held := p.others.Load()
	if held != nil {
		for i := range *held {
			if e := &(*held)[i]; e.format == f && e.field == field {
				return e.body, nil
			}
		}
	}
	if field == "" {
		b = shape(v, f)
	} else if b, err = shapeField(v, f, field); err != nil {
		return nil, err
	}
	var more []otherBody
	if held != nil {
		more = append(more, *held...)
	}
	if len(more) < maxOthers {
		more = append(more, otherBody{f, strings.Clone(field), b})
		if p.others.CompareAndSwap(held, &more) { // whoever loses will try again with its next request
			p.grow(v, b)
		}
	}
	return b, nil
}

// etagOf returns the entity tag of a value, quotes included: a hash under a key that only this
// process knows, since a plain one would let its reader test guesses of the value.
func (s *Server) etagOf(v *upstream.SecretValue) (tag [24]byte) {
	mac := hmac.New(sha256.New, s.etagKey[:])
	hashField(mac, string(v.SecretName))
	hashField(mac, string(v.VersionID))
	hashField(mac, v.SecretDataType)
	hashField(mac, string(v.SecretData.Reveal()))
	for _, stage := range v.VersionStages {
		hashField(mac, string(stage))
	}
	tag[0], tag[23] = '"', '"'
	base64.RawURLEncoding.Encode(tag[1:23], mac.Sum(nil)[:16])
	return tag
}

// hashField writes s with its length, so that no two lists of fields hash alike.
func hashField(h hash.Hash, s string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(s)))
	h.Write(n[:])
	h.Write([]byte(s))
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
