package builtin

import (
	"context"
	"fmt"

	"secretagent/upstream"
)

// Seed creates each of the secrets once in the life of the storage: where it is missing and was
// not there at an earlier Seed. One that was deleted since stays deleted, and one that is there
// stays as it is, whatever its value.
func (s *Store) Seed(ctx context.Context, secrets []upstream.CreateSecretInput) error {
	done, err := s.seeded(ctx)
	if err != nil {
		return err
	}
	for i, in := range secrets {
		if done[in.SecretName] {
			continue
		}
		created, err := answer(ctx, s.write, call{"Seed", secretRef(in.SecretName), in.Validate()}, func(t *tx) (bool, error) {
			return t.seed(in, s.opts.MaxVersions)
		})
		if err != nil {
			return fmt.Errorf("seed[%d]: %w", i, err)
		}
		if created {
			s.log.Info("seeded", "secret", string(in.SecretName), "version", string(in.VersionID))
		}
	}
	return nil
}

// Unseeded returns the names of those of the secrets that the next Seed may create.
func (s *Store) Unseeded(ctx context.Context, secrets []upstream.CreateSecretInput) (names []upstream.SecretName, err error) {
	done, err := s.seeded(ctx)
	for _, in := range secrets {
		if !done[in.SecretName] {
			names = append(names, in.SecretName)
		}
	}
	return names, err
}

// seeded returns the names whose seed is done.
func (s *Store) seeded(ctx context.Context) (map[upstream.SecretName]bool, error) {
	return answer(ctx, s.view, call{op: "Seed"}, func(t *tx) (map[upstream.SecretName]bool, error) {
		done := map[upstream.SecretName]bool{}
		cursor := t.Scan(Seeds, nil)
		for {
			name, _, err := cursor.Next()
			if name == nil || err != nil {
				return done, err
			}
			done[upstream.SecretName(name)] = true
		}
	})
}

// seed creates the secret, unless there is one, and notes that this is done, both or neither.
func (t *tx) seed(in upstream.CreateSecretInput, maxVersions int) (created bool, err error) {
	old, err := t.find(in.SecretName)
	if err != nil {
		return false, err
	}
	if old == nil {
		if _, err := t.create(in, 0, nil, maxVersions); err != nil {
			return false, err
		}
	}
	t.writes++
	return old == nil, t.w.Put(Seeds, []byte(in.SecretName), nil)
}
