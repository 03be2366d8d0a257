/* Preloaded into the crew: while the file $CHAOS_NO_NAMES is there, no name server answers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <unistd.h>

typedef int lookup(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    const char *silent = getenv("CHAOS_NO_NAMES");
    if (silent && access(silent, F_OK) == 0)
        return EAI_AGAIN;
    return ((lookup *)dlsym(RTLD_NEXT, "getaddrinfo"))(node, service, hints, found);
}
