/* Preloaded, makes the folder in DISK behave like a network disk that lacks what DISK_LACKS names:
   folders (fsync of a folder gives EINVAL), flock (ENOLCK), flocks (ENOSYS), ranges (locks of parts of files, ENOLCK). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int lacks(const char *what, int descriptor)
{
    const char *lacking = getenv("DISK_LACKS"), *disk = getenv("DISK");
    char link[64], path[PATH_MAX];
    if (!lacking || !disk || strcmp(lacking, what))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, disk, strlen(disk)) == 0;
}

static int fail(int number)
{
    errno = number;
    return -1;
}

int fsync(int descriptor)
{
    int (*usual)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    struct stat found;
    if (lacks("folders", descriptor) && fstat(descriptor, &found) == 0 && S_ISDIR(found.st_mode))
        return fail(EINVAL);
    return usual(descriptor);
}

int flock(int descriptor, int operation)
{
    int (*usual)(int, int) = (int (*)(int, int))dlsym(RTLD_NEXT, "flock");
    if (lacks("flock", descriptor))
        return fail(ENOLCK);
    if (lacks("flocks", descriptor))
        return fail(ENOSYS);
    return usual(descriptor, operation);
}

static int control(const char *name, int descriptor, int command, void *argument)
{
    int (*usual)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, name);
    if ((command == F_SETLK || command == F_SETLKW || command == F_GETLK) && lacks("ranges", descriptor))
        return fail(ENOLCK);
    return usual(descriptor, command, argument);
}

int fcntl(int descriptor, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return control("fcntl", descriptor, command, argument);
}

int fcntl64(int descriptor, int command, ...)
{
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return control("fcntl64", descriptor, command, argument);
}
