package rotation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"secretagent/upstream"
)

// idPrefix is how the ids of versions begin that a rotation has made.
const idPrefix = "rotation-"

// maxSuccessors is more than versions are kept of a secret.
const maxSuccessors = 1000

// successor returns the id of the version that replaces version id of the secret: the same for
// every agent. n is 0, or more where versions of those ids are there already.
func successor(secret upstream.SecretName, id upstream.VersionID, n int) upstream.VersionID {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%d", secret.Name(), id, n))
	return upstream.VersionID(idPrefix + hex.EncodeToString(sum[:10]))
}

// made reports whether a rotation has made the version.
func made(id upstream.VersionID) bool { return strings.HasPrefix(string(id), idPrefix) }

// state is what versions and labels say about a rotation.
type state struct {
	secret  upstream.SecretName
	current upstream.SecretVersion
	pending upstream.SecretVersion // without VersionID: none is
	last    time.Time              // when the last rotation was: that which was abandoned, too
	ids     []upstream.VersionID
}

// free returns the id of the next version.
func (s *state) free() upstream.VersionID {
	for n := 0; ; n++ {
		if id := successor(s.secret, s.current.VersionID, n); !slices.Contains(s.ids, id) {
			return id
		}
	}
}

// done reports whether the pending version is current, and only its label is left.
func (s *state) done() bool {
	return s.pending.VersionID != "" && s.pending.VersionID == s.current.VersionID
}

// stale reports whether the pending version was made to replace another version than the current
// one.
func (s *state) stale() bool {
	if !made(s.pending.VersionID) || s.done() {
		return false
	}
	for n := range maxSuccessors {
		if s.pending.VersionID == successor(s.secret, s.current.VersionID, n) {
			return false
		}
	}
	return true
}

// look asks the upstream what there is to do.
func (j *job) look(ctx context.Context) (*state, error) {
	s := &state{secret: j.Secret}
	for page := 1; ; page++ {
		out, err := j.upstream().ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{
			SecretName: j.Secret, IncludeDeprecated: true, Page: upstream.Page{Number: page, Size: upstream.MaxPageSize},
		})
		if err != nil {
			return nil, err
		}
		for _, v := range out.Versions {
			s.ids = append(s.ids, v.VersionID)
			current, pending := slices.Contains(v.VersionStages, upstream.ACSCurrent), slices.Contains(v.VersionStages, j.PendingStage)
			if current {
				s.current = v
			}
			if pending {
				s.pending = v
			}
			if (current || !pending) && (current || made(v.VersionID) || slices.Contains(v.VersionStages, upstream.ACSPrevious)) && v.CreateTime.After(s.last) {
				s.last = v.CreateTime
			}
		}
		if len(out.Versions) < upstream.MaxPageSize {
			break
		}
	}
	if s.current.VersionID == "" {
		return nil, &upstream.Error{
			Ref: upstream.SecretRef{SecretName: j.Secret, VersionStage: upstream.ACSCurrent}, Err: upstream.ErrUnavailable,
			Code: upstream.CodeInvalidAnswer, Message: "the list of versions has none with ACSCurrent",
		}
	}
	return s, nil
}

// value reads a version.
func (j *job) value(ctx context.Context, id upstream.VersionID) (*upstream.SecretValue, error) {
	ref := upstream.SecretRef{SecretName: j.Secret, VersionID: id}
	v, err := j.upstream().GetSecretValue(ctx, ref)
	if err == nil {
		err = v.Answers(ref)
	}
	return &v, err
}

// unlabel takes the pending label off a version. Where it is no more, that is done.
func (j *job) unlabel(ctx context.Context, s *state) error {
	err := j.upstream().UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{
		SecretName: j.Secret, VersionStage: j.PendingStage, RemoveFromVersion: s.pending.VersionID,
	})
	if err == nil || !lost(err) {
		return err
	}
	now, err := j.look(ctx)
	if err == nil && now.pending.VersionID == s.pending.VersionID {
		err = fmt.Errorf("the label %s cannot be removed from version %s", j.PendingStage, s.pending.VersionID)
	}
	return err
}
