package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"time"

	"secretagent/agent/config"
	"secretagent/upstream"
	"secretagent/upstream/builtin"
)

// cloudKeeper moves secrets from and to the cloud, by what the KMS API allows. All versions can be read, and are of
// no one moment. Written are those that have a label, ACSCurrent first, so that no reader gets an older one; times, keys,
// instances and policies are the cloud's own.
type cloudKeeper struct{ upstream.Manager }

// openCloudKeeper opens the cloud. written hears of each secret that was written, and may be nil.
func openCloudKeeper(cfg *config.Alibaba, log *slog.Logger, written func(context.Context, upstream.SecretName)) (builtin.Keeper, func() error, error) {
	c, err := openCloud(cfg, log, nil)
	if err != nil {
		return nil, nil, err
	}
	var m upstream.Manager = c
	if written != nil {
		m = upstream.TellWrites(m, written)
	}
	return cloudKeeper{m}, c.Close, nil
}

// Names returns the names of all secrets, in order.
func (c cloudKeeper) Names(ctx context.Context) (names []upstream.SecretName, err error) {
	for page := 1; ; page++ {
		answer, err := c.ListSecrets(ctx, upstream.ListSecretsInput{Page: upstream.Page{Number: page, Size: upstream.MaxPageSize}})
		if err != nil {
			return nil, err
		}
		for _, s := range answer.Secrets {
			names = append(names, s.SecretName)
		}
		if len(answer.Secrets) == 0 || len(names) >= answer.TotalCount {
			slices.Sort(names)
			return slices.Compact(names), nil
		}
	}
}

func (c cloudKeeper) Secrets(ctx context.Context, prefix string, fn func(iter.Seq2[*builtin.Secret, error]) error) error {
	names, err := c.Names(ctx)
	if err != nil {
		return err
	}
	return fn(func(yield func(*builtin.Secret, error) bool) {
		for _, name := range names {
			if !strings.HasPrefix(string(name), prefix) {
				continue
			}
			s, err := c.read(ctx, name)
			if errors.Is(err, upstream.ErrNotFound) { // deleted since
				continue
			}
			if !yield(s, err) || err != nil {
				return
			}
		}
	})
}

func (c cloudKeeper) Lookup(ctx context.Context, names []upstream.SecretName) (map[upstream.SecretName]*builtin.Secret, error) {
	found := map[upstream.SecretName]*builtin.Secret{}
	for _, name := range names {
		s, err := c.read(ctx, name)
		if errors.Is(err, upstream.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found[name] = s
	}
	return found, nil
}

// read returns a secret with its versions.
func (c cloudKeeper) read(ctx context.Context, name upstream.SecretName) (*builtin.Secret, error) {
	meta, err := c.DescribeSecret(ctx, name, true)
	if err != nil {
		return nil, err
	}
	s := &builtin.Secret{
		SecretName: name, Description: meta.Description, EncryptionKeyID: meta.EncryptionKeyID, DKMSInstanceID: meta.DKMSInstanceID,
		CreateTime: meta.CreateTime, UpdateTime: meta.UpdateTime, PlannedDeleteTime: meta.PlannedDeleteTime,
	}
	for _, tag := range meta.Tags {
		if !strings.HasPrefix(tag.Key, "acs:") && !strings.HasPrefix(tag.Key, "aliyun") { // the cloud's own
			s.Tags = append(s.Tags, tag)
		}
	}
	slices.SortFunc(s.Tags, func(a, b upstream.Tag) int { return cmp.Compare(a.Key, b.Key) })
	switch {
	case meta.SecretType != "" && meta.SecretType != upstream.SecretTypeGeneric:
		s.Withheld = "the cloud makes its versions (type " + meta.SecretType + ")"
	case !meta.PlannedDeleteTime.IsZero():
		s.Withheld = "it waits for its deletion, and cannot be read"
	}
	if s.Withheld != "" {
		return s, nil
	}
	versions, err := c.versions(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, v := range slices.Backward(versions) { // oldest first
		value, err := c.GetSecretValue(ctx, upstream.SecretRef{SecretName: name, VersionID: v.VersionID})
		if errors.Is(err, upstream.ErrNotFound) && len(v.VersionStages) == 0 {
			continue // it had to go since
		}
		if err != nil {
			return nil, err
		}
		slices.Sort(v.VersionStages)
		s.Versions = append(s.Versions, builtin.Version{SecretVersion: v, SecretData: value.SecretData, SecretDataType: cmp.Or(value.SecretDataType, upstream.DataTypeText)})
	}
	if meta.DKMSInstanceID != "" {
		policy, err := c.GetSecretPolicy(ctx, name)
		if err == nil && policy != upstream.DefaultPolicy {
			s.Policy = policy
		} else if err != nil && !errors.Is(err, upstream.ErrUnsupported) && !errors.Is(err, upstream.ErrAccessDenied) {
			return nil, err
		}
	}
	return s, nil
}

// versions returns all versions of a secret, newest first.
func (c cloudKeeper) versions(ctx context.Context, name upstream.SecretName) (all []upstream.SecretVersion, err error) {
	for page := 1; ; page++ {
		answer, err := c.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{
			SecretName: name, IncludeDeprecated: true, Page: upstream.Page{Number: page, Size: upstream.MaxPageSize},
		})
		if err != nil {
			return nil, err
		}
		all = append(all, answer.Versions...)
		if len(answer.Versions) == 0 || len(all) >= answer.TotalCount {
			return all, nil
		}
	}
}

// Fit leaves out what the API cannot set.
func (c cloudKeeper) Fit(in *builtin.Secret) (kept *builtin.Secret, note string) {
	first := upstream.CreateSecretInput{SecretName: in.SecretName, Description: in.Description, Tags: in.Tags}
	switch {
	case in.Withheld != "":
		return nil, in.Withheld
	case !in.PlannedDeleteTime.IsZero():
		return nil, "it waits for its deletion"
	}
	kept = &builtin.Secret{SecretName: in.SecretName, Description: in.Description, Tags: in.Tags}
	for _, v := range in.Versions {
		first.VersionID, first.SecretData, first.SecretDataType = v.VersionID, v.SecretData, v.SecretDataType
		if err := first.Validate(); err != nil {
			return nil, err.Error()
		}
		v.CreateTime = time.Time{}
		if len(v.VersionStages) > 0 {
			kept.Versions = append(kept.Versions, v)
		}
	}
	if n := len(in.Versions) - len(kept.Versions); n > 0 {
		note = fmt.Sprintf("without versions that have no label (%d)", n)
	}
	return kept, note
}

// PutSecret stores what Fit has returned. It cannot remove versions, and none can be rewritten.
func (c cloudKeeper) PutSecret(ctx context.Context, in *builtin.Secret, replace bool) error {
	wanted := map[upstream.VersionStage]upstream.VersionID{}
	versions := slices.Clone(in.Versions)
	for _, v := range versions {
		for _, stage := range v.VersionStages {
			wanted[stage] = v.VersionID
		}
	}
	if i := slices.IndexFunc(versions, func(v builtin.Version) bool { return v.VersionID == wanted[upstream.ACSCurrent] }); i > 0 {
		versions[0], versions[i] = versions[i], versions[0]
	}
	v := versions[0]
	_, err := c.CreateSecret(ctx, upstream.CreateSecretInput{
		SecretName: in.SecretName, VersionID: v.VersionID, SecretData: v.SecretData, SecretDataType: v.SecretDataType, Description: in.Description, Tags: in.Tags,
	})
	if err == nil {
		versions = versions[1:]
	} else if errors.Is(err, upstream.ErrExists) {
		err = c.change(ctx, in, replace)
	}
	for _, v := range versions {
		if err != nil {
			return err
		}
		_, err = c.PutSecretValue(ctx, upstream.PutSecretValueInput{
			SecretName: in.SecretName, VersionID: v.VersionID, SecretData: v.SecretData, SecretDataType: v.SecretDataType, VersionStages: v.VersionStages,
		})
	}
	if err != nil {
		return err
	}
	return c.label(ctx, in.SecretName, wanted)
}

// change gives a secret that is there its description and tags.
func (c cloudKeeper) change(ctx context.Context, in *builtin.Secret, replace bool) error {
	there, err := c.read(ctx, in.SecretName)
	if err != nil {
		return err
	}
	if fits, _ := c.Fit(there); !replace && (fits == nil || !fits.PartOf(in)) {
		return &upstream.Error{Message: fmt.Sprintf("the secret %q already exists and is another one", in.SecretName), Err: upstream.ErrExists}
	}
	if there.Description != in.Description {
		if err := c.UpdateSecret(ctx, upstream.UpdateSecretInput{SecretName: in.SecretName, Description: &in.Description}); err != nil {
			return err
		}
	}
	if slices.Equal(there.Tags, in.Tags) {
		return nil
	}
	var gone []string
	for _, tag := range there.Tags {
		if !slices.ContainsFunc(in.Tags, func(t upstream.Tag) bool { return t.Key == tag.Key }) {
			gone = append(gone, tag.Key)
		}
	}
	names := []upstream.SecretName{in.SecretName}
	if len(gone) > 0 {
		if err := c.UntagResources(ctx, upstream.UntagResourcesInput{SecretNames: names, TagKeys: gone}); err != nil {
			return err
		}
	}
	if len(in.Tags) == 0 {
		return nil
	}
	return c.TagResources(ctx, names, in.Tags)
}

// label puts the labels of a secret where they are wanted, ACSCurrent first, which takes ACSPrevious along, and removes
// the others, but ACSPrevious, which cannot be.
func (c cloudKeeper) label(ctx context.Context, name upstream.SecretName, wanted map[upstream.VersionStage]upstream.VersionID) error {
	for range 2 * upstream.MaxVersionStages {
		versions, err := c.versions(ctx, name)
		if err != nil {
			return err
		}
		moves := labelMoves(versions, wanted)
		if len(moves) == 0 {
			return nil
		}
		moves[0].SecretName = name
		if err := c.UpdateSecretVersionStage(ctx, moves[0]); err != nil {
			return err
		}
	}
	return &upstream.Error{Message: fmt.Sprintf("others change the labels of %q meanwhile; repeat it", name), Err: upstream.ErrUnavailable}
}

// labelMoves returns what is still to be done.
func labelMoves(versions []upstream.SecretVersion, wanted map[upstream.VersionStage]upstream.VersionID) (moves []upstream.UpdateSecretVersionStageInput) {
	holder := map[upstream.VersionStage]upstream.VersionID{}
	for _, v := range versions {
		for _, stage := range v.VersionStages {
			holder[stage] = v.VersionID
		}
	}
	for stage, id := range wanted {
		if holder[stage] != id {
			moves = append(moves, upstream.UpdateSecretVersionStageInput{VersionStage: stage, MoveToVersion: id, RemoveFromVersion: holder[stage]})
		}
	}
	for stage, id := range holder {
		if _, keep := wanted[stage]; !keep && !stage.BuiltIn() {
			moves = append(moves, upstream.UpdateSecretVersionStageInput{VersionStage: stage, RemoveFromVersion: id})
		}
	}
	if i := slices.IndexFunc(moves, func(m upstream.UpdateSecretVersionStageInput) bool { return m.VersionStage == upstream.ACSCurrent }); i > 0 {
		moves[0], moves[i] = moves[i], moves[0]
	}
	return moves
}
